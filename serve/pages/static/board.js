"use strict";
// The board on which people rank the answers to one prompt: by digit keys, by buttons or by dragging letters.
// The page that has the board sets `board.changed`, called after each change, `board.confirmed`, called with Enter,
// `board.undone`, called by an undo without changes, `board.before`, which tells whether such an undo leads anywhere,
// and `board.isPaused`, which tells whether keys are ignored.
const LETTERS = "ABCDEFGHI", MARKS = ["helpful", "honest", "harmless"];
const ROLES = { user: "Person", assistant: "Assistant", system: "Instructions" };
const board = { changed: () => {}, confirmed: () => {}, undone: () => {}, isPaused: () => false };
// `judgement` has `ranks` and `marks` by answer id, `allBad`, and `better`, an answer of the person's own.
let task = null, judgement = null, current = 0;
let steps = [];           // the judgement before each change: u goes back through them

function button(className, text, onClick) {
  const node = element("button", className, text);
  node.type = "button";
  node.addEventListener("click", onClick);
  return node;
}
const announce = (text) => { byId("status").textContent = text; };
const rankName = (rank, last) => `${rank}${rank === 1 ? " best" : rank === last ? " worst" : ""}`;
const emptyJudgement = () => ({ ranks: {}, marks: {}, allBad: false, better: "" });

function openBoard(found, said) {
  task = found;
  judgement = said ?? emptyJudgement();
  steps = [];
  byId("messages").replaceChildren(...found.messages.map((message) => {
    const turn = element("div", `turn ${message.role === "user" ? "user" : "other"}`), body = Object.assign(element("div", "body"), { dir: "auto" });
    showText(body, message.content, message.markdown);
    turn.append(element("div", "who", ROLES[message.role] ?? message.role), body);
    return turn;
  }));
  byId("answers").replaceChildren(...found.answers.map(card));
  byId("slots").replaceChildren(...[...found.answers.keys(), found.answers.length].map((rank) => {
    const slot = element("li", "slot"), last = found.answers.length;
    slot.dataset.rank = rank;
    slot.append(element("span", "quiet", rank === 0 ? "Not ranked" : rankName(rank, last)));
    return slot;
  }));
  byId("slots").append(byId("slots").firstChild);
  current = 0;
  markDifferences();
  byId("task").hidden = false;
  draw();
}

function card(answer, index) {
  const node = element("article", "answer"), top = element("div", "top"), ranks = element("div", "ranks");
  node.id = `answer-${index}`;
  node.tabIndex = -1;
  ranks.setAttribute("role", "group");
  ranks.setAttribute("aria-label", `Rank of answer ${LETTERS[index]}`);
  ranks.append(...task.answers.map((_, rank) => button("", rankName(rank + 1, task.answers.length), () => {
    current = index;
    rankCurrent(rank + 1, false);
    // Enter confirms next: on the button it would press it again.
    byId(`answer-${index}`).focus({ preventScroll: true });
  })));
  const words = answer.text.split(/\s+/).filter(Boolean).length;
  const body = Object.assign(element("div", "body"), { dir: "auto" });
  top.append(chip(index), ranks, rawButton(body, answer.text, answer.markdown), element("span", "quiet", `${words} word${words === 1 ? "" : "s"}, ${[...answer.text].length} characters`));
  if (answer.text.trim()) showText(body, answer.text, answer.markdown); else body.append(element("p", "quiet", "(an empty answer)"));
  node.append(top, body);
  if (byId("all-bad")) {
    const marks = element("div", "marks");
    marks.append(...MARKS.map((mark) => button("", mark, () => change(() => turnMark(answer.id, mark)))));
    node.append(marks);
  }
  node.addEventListener("focusin", () => { if (current !== index) { current = index; drawCurrent(); } });
  node.addEventListener("pointerdown", () => { current = index; drawCurrent(); });
  return node;
}

// Marks the words that not every answer has, in the answers as they are shown.
const wordsOf = (text) => text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
function markDifferences() {
  const on = byId("differences").getAttribute("aria-pressed") === "true";
  for (const old of document.querySelectorAll("#answers mark")) old.replaceWith(old.textContent);
  if (!on || !task) return;
  const sets = task.answers.map((answer) => new Set(wordsOf(answer.text)));
  const isShared = (word) => wordsOf(word).every((one) => sets.every((set) => set.has(one)));
  for (const body of document.querySelectorAll("#answers .body")) {
    const texts = [], walker = document.createTreeWalker(body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) texts.push(walker.currentNode);
    for (const text of texts) {
      text.replaceWith(...text.data.split(/([\p{L}\p{N}]+)/u).map((part) => (isShared(part) ? part : element("mark", "", part))));
    }
  }
}

function turnMark(id, mark) {
  const marks = { ...judgement.marks[id] };
  if (marks[mark] === undefined) marks[mark] = true;
  else if (marks[mark]) marks[mark] = false;
  else delete marks[mark];
  judgement.marks = { ...judgement.marks, [id]: marks };
}

function chip(index) {
  const node = button("chip", LETTERS[index], () => { current = index; drawCurrent(); byId(`answer-${index}`).focus(); });
  node.dataset.index = index;
  node.addEventListener("pointerdown", (event) => startDrag(event, index));
  return node;
}

function startDrag(event, index) {
  if (event.button) return;
  const from = event.currentTarget, begin = [event.clientX, event.clientY];
  let flying = null;
  const slotAt = (at) => document.elementsFromPoint(at.clientX, at.clientY).find((node) => node.classList.contains("slot"));
  const move = (at) => {
    if (!flying && Math.hypot(at.clientX - begin[0], at.clientY - begin[1]) < 5) return;
    if (!flying) { flying = element("div", "chip flying", LETTERS[index]); document.body.append(flying); from.classList.add("left"); }
    flying.style.left = `${at.clientX}px`;
    flying.style.top = `${at.clientY}px`;
    for (const slot of document.querySelectorAll(".slot")) slot.classList.toggle("over", slot === slotAt(at));
  };
  const end = (at) => {
    from.removeEventListener("pointermove", move);
    for (const kind of ["pointerup", "pointercancel"]) from.removeEventListener(kind, end);
    const slot = flying && at.type === "pointerup" ? slotAt(at) : null;
    flying?.remove();
    from.classList.remove("left");
    document.querySelector(".slot.over")?.classList.remove("over");
    if (slot) { current = index; rankCurrent(Number(slot.dataset.rank), false); }
  };
  from.setPointerCapture(event.pointerId);
  from.addEventListener("pointermove", move);
  for (const kind of ["pointerup", "pointercancel"]) from.addEventListener(kind, end);
}

function change(edit) {
  steps.push({ judgement: structuredClone(judgement), current });
  edit();
  board.changed();
  draw();
}

function rankCurrent(rank, goOn) {
  const index = current;
  change(() => {
    judgement.allBad = false;
    judgement.ranks = { ...judgement.ranks };
    if (rank) judgement.ranks[task.answers[index].id] = rank; else delete judgement.ranks[task.answers[index].id];
  });
  const next = goOn ? unranked().find((at) => at > index) ?? unranked()[0] : undefined;
  if (next !== undefined) moveTo(next);
  announce(`Answer ${LETTERS[index]}: ${rank ? `rank ${rank}` : "not ranked"}. ${unranked().length ? `Now answer ${LETTERS[current]}.` : "All ranked; Enter confirms."}`);
}

const rankOf = (index) => judgement.ranks[task.answers[index].id];
const unranked = () => [...task.answers.keys()].filter((index) => !rankOf(index));

function moveTo(index) {
  current = Math.max(0, Math.min(task.answers.length - 1, index));
  drawCurrent();
  byId(`answer-${current}`).focus({ preventScroll: true });
  byId(`answer-${current}`).scrollIntoView({ block: "nearest" });
}

function drawCurrent() {
  for (const [index, node] of [...byId("answers").children].entries()) {
    node.setAttribute("aria-current", String(index === current));
    node.tabIndex = index === current ? 0 : -1;
  }
}

function draw() {
  for (const [index, answer] of task.answers.entries()) {
    const node = byId(`answer-${index}`), rank = rankOf(index);
    node.setAttribute("aria-label", `Answer ${LETTERS[index]}, ${rank ? `rank ${rank}` : "not ranked"}`);
    for (const [at, one] of [...node.querySelectorAll(".ranks button")].entries()) one.setAttribute("aria-pressed", String(at + 1 === rank));
    for (const [at, one] of [...node.querySelectorAll(".marks button")].entries()) {
      const value = judgement.marks[answer.id]?.[MARKS[at]];
      one.className = value === undefined ? "" : value ? "yes" : "no";
      one.textContent = value === undefined ? `${MARKS[at]}?` : value ? `✓ ${MARKS[at]}` : `✗ not ${MARKS[at]}`;
    }
  }
  for (const slot of byId("slots").children) {
    const rank = Number(slot.dataset.rank) || undefined;
    for (const old of slot.querySelectorAll(".chip")) old.remove();
    const inside = [...task.answers.keys()].filter((index) => rankOf(index) === rank);
    slot.append(...inside.map(chip));
    slot.hidden = rank === undefined && inside.length === 0;
  }
  byId("all-bad")?.setAttribute("aria-pressed", String(judgement.allBad));
  byId("undo").disabled = !canUndo();
  byId("confirm").disabled = !judgement.allBad && unranked().length > 0;
  drawCurrent();
}

// Goes one change back, or else to the task before where the page can.
const canUndo = () => steps.length > 0 || Boolean(board.before?.());
function undo() {
  if (!task || !steps.length) { board.undone(); return; }
  ({ judgement, current } = steps.pop());
  if (byId("better")) byId("better").value = judgement.better;
  board.changed();
  draw();
  announce("Undone.");
}

const isRanked = () => judgement.allBad || unranked().length === 0;
function confirmRanking() {
  if (isRanked()) return board.confirmed();
  return announce(`Not ranked yet: ${unranked().map((index) => LETTERS[index]).join(", ")}.`);
}

byId("confirm").addEventListener("click", confirmRanking);
byId("undo").addEventListener("click", undo);
byId("differences").addEventListener("click", (event) => {
  const node = event.currentTarget;
  node.setAttribute("aria-pressed", String(node.getAttribute("aria-pressed") === "false"));
  markDifferences();
});
byId("all-bad")?.addEventListener("click", () => change(() => { judgement.allBad = !judgement.allBad; judgement.ranks = {}; }));

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || isComposing(event) || board.isPaused()) return;
  if (event.target.matches("input, textarea, select")) return;
  if (event.key === "u") { undo(); return event.preventDefault(); }
  if (!task) return;
  const digit = digitOf(event);
  if (digit > 0 && digit <= task.answers.length) rankCurrent(digit, true);
  else if (event.key === "ArrowDown" || event.key === "ArrowRight") moveTo(current + 1);
  else if (event.key === "ArrowUp" || event.key === "ArrowLeft") moveTo(current - 1);
  else if (event.key === "b" && byId("all-bad")) byId("all-bad").click();
  else if (event.key === "s") byId("skip").click();
  else if (event.key === "d") byId("differences").click();
  else if (event.key === "Enter" && !event.target.matches("button, summary")) confirmRanking();
  else return;
  event.preventDefault();
});
