"use strict";
// The elements of one turn of a chat, and the buttons of a question and an answer.
const log = byId("log");

function toEnd() { byId("scroll").scrollTop = byId("scroll").scrollHeight; }
const isAtEnd = () => byId("scroll").scrollHeight - byId("scroll").scrollTop - byId("scroll").clientHeight < 60;

function textButton(text, name, onClick, className = "") {
  const node = element("button", className, text);
  node.type = "button";
  node.setAttribute("aria-label", name);
  node.addEventListener("click", onClick);
  return node;
}

function turnOf(role, who, text) {
  const turn = element("div", `turn ${role}`), body = Object.assign(element("div", "text", text), { dir: "auto" }), foot = element("div", "foot");
  turn.append(element("span", "who", who), body);
  return { turn, body, foot };
}

// The place of an answer in a new turn: after the text that it continues, if it continues one.
function answerOf(record) {
  const place = turnOf("assistant", record.who, "");
  if (record.continued) place.body.append(element("span", "prompt", record.continued));
  const answer = document.createTextNode(record.text);
  place.body.append(answer);
  return { ...place, answer };
}

// The buttons that turn to another version of a turn. They are called "earlier" and "later" by when they were written.
function versionButtons(versions, index, choose) {
  if (versions.length < 2) return [];
  const place = versions.indexOf(index), node = element("span", "versions");
  const turnTo = (step, text, name) => {
    const button = textButton(text, name, () => choose(versions[place + step], name), "act");
    button.dataset.never = String(versions[place + step] === undefined);
    button.disabled = versions[place + step] === undefined;
    return button;
  };
  node.append(turnTo(-1, "‹", "Earlier version"), element("span", "", `${place + 1} of ${versions.length}`), turnTo(1, "›", "Later version"));
  return [node];
}

// Replaces the text of a question with a form in which it is edited; `send` is called with another text.
function editText({ turn, body, foot }, text, send) {
  const form = element("form", "edit"), label = element("label", "away", "Edited text"), input = Object.assign(element("textarea"), { value: text, dir: "auto", id: "edited", rows: 2 });
  const buttons = element("div", "buttons"), leave = element("button", "", "Cancel"), save = element("button", "main", "Ask again");
  label.htmlFor = input.id;
  leave.type = "button";
  buttons.append(leave, save);
  form.append(label, input, buttons);
  const grow = () => { input.style.height = "auto"; input.style.height = `${input.scrollHeight + 2}px`; };
  const end = () => { form.replaceWith(body); foot.hidden = false; turn.querySelector("[data-key=edit]").focus(); };
  leave.addEventListener("click", end);
  input.addEventListener("input", grow);
  input.addEventListener("keydown", (event) => {
    if (isComposing(event)) return;
    if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); form.requestSubmit(); }
    if (event.key === "Escape") { event.stopPropagation(); end(); }
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!input.value.trim() || input.value === text) end(); else send(input.value);
  });
  body.replaceWith(form);
  foot.hidden = true;
  grow();
  input.focus();
}

function copyButton(text, body) {
  const copy = textButton("Copy", "Copy this answer", async () => {
    try { await navigator.clipboard.writeText(text); copy.textContent = "Copied"; }
    catch { getSelection().selectAllChildren(body); copy.textContent = "Press Ctrl+C"; }
    setTimeout(() => { copy.textContent = "Copy"; }, 1600);
  });
  return copy;
}

// Two thumb buttons, of which one may be pressed. `rate` sends the choice (true, false, or null for neither) and returns
// whether it was stored.
function thumbButtons(good, rate) {
  const buttons = [true, false].map((says) => {
    const button = textButton("", says ? "Good answer" : "Poor answer", async () => {
      const wanted = button.getAttribute("aria-pressed") === "true" ? null : says;
      for (const one of buttons) one.disabled = true;
      const done = await rate(wanted);
      for (const one of buttons) one.disabled = false;
      if (done) show(wanted);
      button.focus();
    }, says ? "thumb" : "thumb down");
    button.append(byId("thumb").content.cloneNode(true));
    return button;
  });
  const show = (value) => buttons.forEach((button, index) => button.setAttribute("aria-pressed", String(value === (index === 0))));
  show(good);
  return buttons;
}

// Shows a complete answer as Markdown, with a button for the text as it was written. A text that a model only continued
// is left as it is.
function showMarkdown({ turn, body }, record, parsed) {
  if (!record.text.trim() || record.continued) return;
  body.classList.add("body");
  showText(body, record.text, parsed);
  turn.querySelector(".foot button").after(rawButton(body, record.text, parsed));
}

// Completes the turn of an answer that is not being written any more; `more` are further buttons.
function finish({ turn, body, foot }, record, rate, more) {
  const { end, tokens, seconds } = record;
  if (record.text || !record.error) foot.append(copyButton(`${record.continued ?? ""}${record.text}`, body));
  if (record.request && record.text && "thumbs" in log.dataset) foot.append(...thumbButtons(record.good ?? null, rate));
  const why = { length: "cut at max tokens", stopped: "stopped", failed: "broken off" }[end];
  const facts = [why, record.text ? "" : "no text", tokens ? `${tokens} token${tokens === 1 ? "" : "s"} in ${seconds.toFixed(1)} s` : ""];
  foot.append(...more, element("span", "", facts.filter(Boolean).join(" · ")));
  turn.classList.remove("busy");
  if (record.error) turn.append(element("p", "error", record.error));
  if (record.error && !record.text) body.remove();
  turn.append(foot);
}
