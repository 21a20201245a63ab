"use strict";
const OF_TWO = { left: [1, 2], right: [2, 1] }, TITLES_OF_TWO = ["Left", "Right"];
let comparison = null;   // the name to vote on, once all answers are complete
let count = 2;           // how many answers there are
let order = [];          // with three or more answers: the sides picked so far, the best first
let shownSince = 0, voted = 0, busy = null, sending = false;
const announce = (text) => { byId("status").textContent = text; };
const side = (index) => byId(`side-${index}`);
const titles = () => (count === 2 ? TITLES_OF_TWO : Array.from({ length: count }, (_, index) => `Answer ${index + 1}`));
const places = (ranks) => ranks.map((rank) => (ranks.filter((other) => other === rank).length > 1 ? `${rank}=` : String(rank)));
const asSentence = (names) => (names.length < 3 ? names.join(" and ") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`);

function button(text, key, onClick) {
  const node = element("button", "", `${text} `), hint = element("kbd", "", key);
  node.type = "button";
  hint.setAttribute("aria-hidden", "true");
  node.append(hint);
  node.addEventListener("click", onClick);
  return node;
}

function drawSides() {
  byId("sides").dataset.count = count;
  byId("sides").replaceChildren(...titles().map((title, index) => {
    const node = element("article", "side"), name = element("h3"), body = Object.assign(element("div", "body"), { dir: "auto" });
    Object.assign(node, { id: `side-${index}`, tabIndex: 0 });
    Object.assign(name, { id: `name-${index}` });
    name.append(element("span", "", title), element("span", "place"));
    node.setAttribute("aria-labelledby", name.id);
    node.append(name, body);
    return node;
  }));
  const tie = button("Tie", "t", () => vote(Array(count).fill(1))), bad = button(count === 2 ? "Both bad" : "All bad", "b", () => vote(null));
  byId("votes").dataset.count = count;
  byId("votes").replaceChildren(...(count === 2
    ? [button("Left", "←", () => vote(OF_TWO.left)), tie, bad, button("Right", "→", () => vote(OF_TWO.right))]
    : [...titles().map((title, index) => button(title, String(index + 1), () => pick(index))), tie, bad, button("Undo", "u", unpick)]));
  byId("how").textContent = count === 2
    ? "Arrow keys vote left or right, t is a tie, b says that both are bad. The models' names are shown after the vote."
    : `Pick the best answer, then the next best: keys 1 to ${count}, u takes a pick back. t is a tie of all, b says that all are bad.`;
}

function drawOrder(able) {
  for (const one of byId("votes").children) one.disabled = !able;
  if (count === 2) return;
  for (const index of Array(count).keys()) {
    const place = order.indexOf(index);
    byId("votes").children[index].disabled = !able || place >= 0;
    side(index).classList.toggle("picked", place >= 0);
    side(index).querySelector(".place").textContent = place < 0 ? "" : String(place + 1);
  }
  byId("votes").lastChild.disabled = !able || !order.length;
}

function pick(index) {
  if (!comparison || sending || !byId("after").hidden || order.includes(index)) return;
  order.push(index);
  drawOrder(true);
  announce(`Answer ${index + 1} has place ${order.length}.`);
  if (order.length < count - 1) return;
  const last = [...Array(count).keys()].find((other) => !order.includes(other));
  const ranks = [...Array(count).keys()].map((one) => [...order, last].indexOf(one) + 1);
  vote(ranks);
}

function unpick() {
  if (sending || !byId("after").hidden) return;
  order.pop();
  drawOrder(Boolean(comparison));
}

// Answers are shown as they come, and as Markdown once they are whole.
function fill(texts, parsed) {
  for (const [index, text] of texts.entries()) {
    const body = side(index).querySelector(".body");
    if (!text.trim()) body.replaceChildren(element("p", "quiet", parsed ? "(an empty answer)" : "…"));
    else if (!parsed) body.replaceChildren(element("p", "", text));
    else {
      showText(body, text, parsed[index]);
      side(index).append(rawButton(body, text, parsed[index]));
    }
  }
}

async function compare(prompt) {
  busy?.abort();
  const control = new AbortController();
  busy = control;
  count = Number(byId("count").value);
  const texts = Array(count).fill("");
  comparison = null;
  order = [];
  complain("");
  byId("asked").textContent = prompt;
  byId("outcome").textContent = "";
  byId("comparison").hidden = false;
  byId("comparison").classList.remove("revealed");
  byId("after").hidden = true;
  byId("votes").hidden = false;
  drawSides();
  drawOrder(false);
  fill(texts, null);
  byId("asked").focus({ preventScroll: true });
  announce(`${count === 2 ? "Both" : `All ${count}`} models are writing.`);
  try {
    const response = await request("/compare/answers", { prompt, sides: count }, control.signal);
    for await (const event of streamedEvents(response)) {
      if (event.error) throw new Error(event.error);
      if (event.comparison) { comparison = event.comparison; fill(texts, event.markdown); }
      else { texts[event.side] += event.text; fill(texts, null); }
    }
    if (!comparison) throw new Error("the answers broke off");
    drawOrder(true);
    shownSince = performance.now();
    announce(`${titles().map((title, index) => `${title}: ${texts[index] || "no text"}.`).join(" ")} Which is better?`);
  } catch (error) {
    if (busy === control && error.name !== "AbortError") { complain(`No comparison: ${error.message}`); byId("comparison").hidden = true; byId("prompt").focus(); }
  }
}

function outcome(ranks, models) {
  const were = titles().map((title, index) => `${title} was ${models[index]}`).join(", ");
  if (!ranks) return `${count === 2 ? "Both" : "All"} are bad. ${were}.`;
  const best = models.filter((_, index) => ranks[index] === 1);
  return best.length > 1 ? `A tie of ${asSentence(best)}. ${were}.` : `${best[0]} is best. ${were}.`;
}

async function vote(ranks) {
  if (!comparison || sending || !byId("after").hidden) return;
  sending = true;
  drawOrder(false);
  try {
    const seconds = Math.min(86_400, Math.round((performance.now() - shownSince) / 100) / 10);
    const { models } = await ask("/compare/vote", { comparison, ranks, seconds });
    complain("");
    for (const [index, name] of models.entries()) {
      byId(`name-${index}`).firstChild.textContent = name;
      side(index).querySelector(".place").textContent = ranks && count > 2 ? places(ranks)[index] : "";
      side(index).classList.remove("picked");
      side(index).classList.toggle("chosen", Boolean(ranks) && ranks[index] === 1 && new Set(ranks).size > 1);
    }
    byId("comparison").classList.add("revealed");
    byId("outcome").textContent = outcome(ranks, models);
    byId("votes").hidden = true;
    byId("after").hidden = false;
    byId("progress").textContent = `${++voted} vote${voted === 1 ? "" : "s"}`;
    announce(byId("outcome").textContent);
    byId("new").focus({ preventScroll: true });
  } catch (error) {
    order = [];
    drawOrder(true);
    complain(`Not saved: ${error.message}. Vote again.`);
  }
  sending = false;
}

function fresh() {
  byId("comparison").hidden = true;
  byId("prompt").value = "";
  byId("prompt").focus();
}

async function enter() {
  byId("task").hidden = false;
  byId("prompt").focus();
  try {
    const { most } = await ask("/compare/models");
    byId("count").replaceChildren(...Array.from({ length: Math.max(1, most - 1) }, (_, index) => new Option(`${index + 2} models`, index + 2)));
    byId("count").hidden = most < 3;
  } catch (error) { complain(error.message); }
}

function leave() {
  busy?.abort();
  comparison = null;
  voted = 0;
  byId("comparison").hidden = true;
  byId("progress").textContent = "";
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const prompt = byId("prompt").value;
  if (prompt.trim()) compare(prompt);
});
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !isComposing(event)) { event.preventDefault(); byId("ask").requestSubmit(); }
});
byId("new").addEventListener("click", fresh);
byId("again").addEventListener("click", () => compare(byId("asked").textContent));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || isComposing(event) || event.target.matches("input, textarea, select")) return;
  if (byId("comparison").hidden || byId("task").hidden) return;
  const keys = byId("after").hidden
    ? Object.fromEntries([...byId("votes").children].map((one) => [one.querySelector("kbd").textContent, one]))
    : { n: byId("new"), a: byId("again") };
  const pressed = keys[{ ArrowLeft: "←", ArrowRight: "→" }[event.key] ?? (digitOf(event) || event.key)];
  if (!pressed) return;
  pressed.click();
  event.preventDefault();
});
startSession(enter, leave);
