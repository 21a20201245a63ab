"use strict";
const SIDES = ["left", "right"], VOTES = { ArrowLeft: "left", ArrowRight: "right", t: "tie", b: "bad" };
const OUTCOMES = { left: "The left answer is better", right: "The right answer is better", tie: "A tie", bad: "Both are bad" };
let comparison = null;   // the name to vote on, once both answers are whole
let shownSince = 0, voted = 0, busy = null, sending = false;
const announce = (text) => { byId("status").textContent = text; };
const side = (index) => byId(`side-${index}`);

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (buffer + value).split("\n");
    buffer = lines.pop();
    for (const line of lines) if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
  }
}

function votable(able) { for (const one of byId("votes").children) one.disabled = !able; }

function fill(texts, whole) {
  for (const [index, text] of texts.entries()) {
    const body = side(index).querySelector(".body"), empty = element("p", "quiet", whole ? "(an empty answer)" : "…");
    body.replaceChildren(text.trim() ? renderMarkdown(text) : empty);
  }
}

async function compare(prompt) {
  busy?.abort();
  const control = new AbortController(), texts = ["", ""];
  busy = control;
  comparison = null;
  complain("");
  byId("asked").textContent = prompt;
  byId("outcome").textContent = "";
  byId("comparison").hidden = false;
  byId("comparison").classList.remove("told");
  byId("after").hidden = true;
  byId("votes").hidden = false;
  votable(false);
  for (const index of [0, 1]) { side(index).classList.remove("chosen"); byId(`name-${index}`).textContent = ["Left", "Right"][index]; }
  fill(texts, false);
  byId("asked").focus({ preventScroll: true });
  announce("Both models are writing.");
  try {
    const response = await request("/compare/answers", { prompt }, control.signal);
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error);
      if (event.comparison) comparison = event.comparison;
      else { texts[event.side] += event.text; fill(texts, false); }
    }
    if (!comparison) throw new Error("the answers broke off");
    fill(texts, true);
    votable(true);
    shownSince = performance.now();
    announce(`Left: ${texts[0] || "no text"}. Right: ${texts[1] || "no text"}. Which is better?`);
  } catch (error) {
    if (busy === control && error.name !== "AbortError") { complain(`No comparison: ${error.message}`); byId("comparison").hidden = true; byId("prompt").focus(); }
  }
}

async function vote(what) {
  if (!comparison || sending || !byId("after").hidden) return;
  sending = true;
  votable(false);
  try {
    const seconds = Math.min(86_400, Math.round((performance.now() - shownSince) / 100) / 10);
    const { models } = await ask("/compare/vote", { comparison, vote: what, seconds });
    complain("");
    for (const [index, name] of models.entries()) {
      byId(`name-${index}`).textContent = name;
      side(index).classList.toggle("chosen", SIDES[index] === what);
    }
    byId("comparison").classList.add("told");
    byId("outcome").textContent = `${OUTCOMES[what]}. Left was ${models[0]}, right was ${models[1]}.`;
    byId("votes").hidden = true;
    byId("after").hidden = false;
    byId("progress").textContent = `${++voted} vote${voted === 1 ? "" : "s"}`;
    announce(byId("outcome").textContent);
    byId("new").focus({ preventScroll: true });
  } catch (error) {
    votable(true);
    complain(`Not saved: ${error.message}. Vote again.`);
  }
  sending = false;
}

function fresh() {
  byId("comparison").hidden = true;
  byId("prompt").value = "";
  byId("prompt").focus();
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const prompt = byId("prompt").value;
  if (prompt.trim()) compare(prompt);
});
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); byId("ask").requestSubmit(); }
});
for (const one of byId("votes").children) one.addEventListener("click", () => vote(one.dataset.vote));
byId("new").addEventListener("click", fresh);
byId("again").addEventListener("click", () => compare(byId("asked").textContent));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.target.matches("input, textarea, select")) return;
  if (byId("comparison").hidden || byId("task").hidden) return;
  if (!byId("after").hidden && event.key === "n") fresh();
  else if (!byId("after").hidden && event.key === "a") byId("again").click();
  else if (byId("after").hidden && VOTES[event.key]) vote(VOTES[event.key]);
  else return;
  event.preventDefault();
});
startSession(
  () => { byId("task").hidden = false; byId("prompt").focus(); },
  () => { busy?.abort(); comparison = null; voted = 0; byId("comparison").hidden = true; byId("progress").textContent = ""; },
);
