"use strict";
// The elements of one turn of a chat, and the buttons of an answer.
const log = byId("log");

function toEnd() { byId("scroll").scrollTop = byId("scroll").scrollHeight; }
const isAtEnd = () => byId("scroll").scrollHeight - byId("scroll").scrollTop - byId("scroll").clientHeight < 60;

function addTurn(role, who, text) {
  const turn = element("div", `turn ${role}`);
  const body = Object.assign(element("div", "text", text), { dir: "auto" });
  turn.append(element("span", "who", who), body);
  log.append(turn);
  byId("welcome").hidden = true;
  toEnd();
  return { turn, body };
}

// The place of an answer in a new turn: after the text that it continues, if it continues one.
function addAnswer(who, continued) {
  const { turn, body } = addTurn("assistant", who, "");
  if (continued) body.append(element("span", "prompt", continued));
  const answer = document.createTextNode("");
  body.append(answer);
  return { turn, body, answer };
}

function copyButton(text, body) {
  const copy = element("button", "", "Copy");
  copy.type = "button";
  copy.setAttribute("aria-label", "Copy this answer");
  copy.addEventListener("click", async () => {
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
    const button = element("button", says ? "thumb" : "thumb down");
    button.type = "button";
    button.setAttribute("aria-label", says ? "Good answer" : "Poor answer");
    button.append(byId("thumb").content.cloneNode(true));
    button.addEventListener("click", async () => {
      const wanted = button.getAttribute("aria-pressed") === "true" ? null : says;
      for (const one of buttons) one.disabled = true;
      const done = await rate(wanted);
      for (const one of buttons) one.disabled = false;
      if (done) show(wanted);
      button.focus();
    });
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

function finish({ turn, body }, record, rate) {
  const foot = element("div", "foot"), { end, tokens, seconds } = record;
  foot.append(copyButton(`${record.continued ?? ""}${record.text}`, body));
  if (record.request && record.text && "thumbs" in log.dataset) foot.append(...thumbButtons(record.good ?? null, rate));
  const why = { length: "cut at max tokens", stopped: "stopped", failed: "broken off" }[end];
  const facts = [why, tokens ? `${tokens} token${tokens === 1 ? "" : "s"} in ${seconds.toFixed(1)} s` : ""];
  foot.append(element("span", "", facts.filter(Boolean).join(" · ")));
  turn.classList.remove("busy");
  turn.append(foot);
}
