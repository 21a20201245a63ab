"use strict";
// The third step of the story: the visitor ranks answers, a reward model and a policy learn from these rankings, and the
// answers to a few questions change while they do. The rankings stay in this browser until they are sent.
const LOOK_AGAIN_MS = 1_000, WAIT_MS = 5_000, KEPT = "triptych story";
// `rankings` has the ranks by answer id of each ranked prompt; `order` the prompts in the order in which they were done.
let mine = { visitor: newId(), rankings: {}, order: [], skipped: [] };
let before = new Map();     // the fine-tuned model's answers to the questions
let version = "", looking = 0, wasRunning = false;

function keep() { localStorage.setItem(KEPT, JSON.stringify(mine)); }
try { mine = { ...mine, ...JSON.parse(localStorage.getItem(KEPT)) }; } catch { /* the entry is damaged */ }
keep();

const ranked = () => story.tasks.filter((one) => mine.rankings[one.prompt]).length;

function openNext() {
  const next = story.tasks.find((one) => !mine.rankings[one.prompt] && !mine.skipped.includes(one.prompt));
  byId("finished").hidden = next !== undefined;
  if (next) openBoard(next, null); else { task = null; byId("task").hidden = true; }
  showCount();
}

function showCount() {
  const count = ranked(), enough = count >= story.least || byId("gameable").checked;
  byId("ranked").textContent = `${count} of ${story.tasks.length} ranked${mine.skipped.length ? `, ${mine.skipped.length} skipped` : ""}.`;
  byId("train").disabled = !enough || wasRunning;
  byId("train").textContent = byId("gameable").checked ? "Train on the bad reward" : `Train on my ${count} ranking${count === 1 ? "" : "s"}`;
  byId("begin-hint").textContent = wasRunning ? "" : enough
    ? "About a minute and a half. Nothing of this run is changed: your models live in a folder of their own."
    : `Rank at least ${story.least}; with all ${story.tasks.length} the reward model knows better what you mean.`;
}

function confirmed() {
  const done = task.prompt;
  mine.rankings[done] = { answers: task.answers.map((answer) => answer.id), ranks: task.answers.map((answer) => judgement.ranks[answer.id]) };
  mine.order = [...mine.order.filter((prompt) => prompt !== done), done];
  keep();
  openNext();
  announce(byId("ranked").textContent);
  (task ? byId("prompt-title") : byId("train")).focus({ preventScroll: Boolean(task) });
}

function backToLast() {
  const last = story.tasks.find((one) => one.prompt === mine.order.at(-1));
  if (!last) return;
  const said = mine.rankings[last.prompt];
  mine.order.pop();
  delete mine.rankings[last.prompt];
  keep();
  byId("finished").hidden = true;
  openBoard(last, { ...emptyJudgement(), ranks: Object.fromEntries(said.answers.map((id, index) => [id, said.ranks[index]])) });
  showCount();
}

async function askQuestions(model) {
  const found = new Map();
  for (const question of story.questions) found.set(question, (await write(model, question)).text);
  return found;
}

async function showAnswers() {
  if (!before.size) before = await askQuestions("sft");
  const now = await askQuestions("visitor");
  byId("answers-now").replaceChildren(...story.questions.map((question) => {
    const row = element("tr"), head = element("th", "", question), changed = now.get(question) !== before.get(question);
    head.scope = "row";
    const cells = [element("td", "", before.get(question)), element("td", changed ? "changed" : "", now.get(question))];
    for (const cell of cells) cell.dir = "auto";
    cells[0].dataset.model = "Fine-tuned";
    cells[1].dataset.model = "After the training";
    row.append(head, ...cells);
    return row;
  }));
}

const percent = (figure) => `${Math.round(100 * figure.value)} %`;
function phase(state) {
  const left = state.left > 1 ? ` About ${Math.max(1, Math.round(state.left))} s left.` : "";
  if (state.outcome === "failed") return `The training ended: ${state.error}.`;
  const whose = state.mine ? "" : "Another visitor's training: ";
  if (state.outcome === "done") return `${whose}${state.stopped ? `Stopped by the gate: ${state.stopped}.` : `Done: ${state.policy.length} steps of reinforcement learning.`}`;
  if (state.policy.length) return `${whose}Reinforcement learning, step ${state.policy.length} of ${state.steps}.${left}`;
  if (state.gameable) return `${whose}The engine starts.${left}`;
  if (state.reward.losses.length) return `${whose}The reward model has learned from ${state.rankings} rankings; the engine starts.${left}`;
  return `${whose}The reward model learns from ${state.rankings} rankings.${left}`;
}

function agreement({ agreement, trained_agreement: trained }) {
  if (!agreement) return [];
  const interval = `${Math.round(100 * agreement.low)} to ${Math.round(100 * agreement.high)} %`;
  return [element("p", "", `The reward model puts ${percent(trained)} of your ${trained.n} pairs in your order, and ${percent(agreement)} (${interval}) of ${agreement.n} that it was not shown.`)];
}

function drawCurves(state) {
  const steps = (name) => state.policy.filter((row) => row[name] !== null).map((row) => [row.step, row[name]]);
  const curves = [["reward model's loss", state.reward.losses]];
  if (state.policy.length) curves.push(["reward", steps("reward")], ["KL from the fine-tuned model", steps("kl")], ["tokens an answer", steps("length")]);
  byId("curves").replaceChildren(...agreement(state.reward), ...curves.filter(([, points]) => points.length).map(curve));
}

async function look() {
  clearTimeout(looking);
  let wait = WAIT_MS;
  try {
    const state = await getJson(`/story/state?visitor=${encodeURIComponent(mine.visitor)}`);
    const running = state.outcome === "running";
    if (state.outcome) {
      byId("training").hidden = false;
      byId("training-title").textContent = state.gameable ? "Training on the bad reward" : "Training";
      byId("training-state").textContent = phase(state);
      byId("bar").value = running ? 0.3 * Math.min(1, state.policy.length + state.reward.losses.length / 40) + 0.7 * state.policy.length / state.steps : 1;
      drawCurves(state);
      if (state.version !== version && (!running || state.policy.length)) { version = state.version; await showAnswers(); }
      byId("chat-link").hidden = state.outcome !== "done";
    }
    if (running !== wasRunning) { wasRunning = running; showCount(); }
    if (running) wait = LOOK_AGAIN_MS;
    complain("");
  } catch (error) { complain(`The training could not be followed: ${error.message}`); }
  looking = setTimeout(() => (document.hidden ? document.addEventListener("visibilitychange", look, { once: true }) : look()), wait);
}

async function startTraining(event) {
  event.preventDefault();
  byId("train").disabled = true;
  const rankings = story.tasks.filter((one) => mine.rankings[one.prompt]).map((one) => ({ prompt: one.prompt, ...mine.rankings[one.prompt] }));
  try {
    await getJson("/story/training", { visitor: mine.visitor, rankings, gameable: byId("gameable").checked });
    complain("");
    await look();
    byId("training-title").focus();
  } catch (error) {
    complain(error.message);
    byId("trouble").scrollIntoView({ block: "nearest" });
    showCount();
  }
}

function beginRanking() {
  byId("gameable-part").hidden = !story.gameable;
  openNext();
  look();
}

// Keys rank only while the visitor is in the third step.
const isElsewhere = () => !byId("human").contains(document.activeElement);
Object.assign(board, { confirmed, undone: backToLast, before: () => mine.order.length > 0, isPaused: isElsewhere });
byId("skip").addEventListener("click", () => { if (task) { mine.skipped.push(task.prompt); keep(); openNext(); } });
byId("again").addEventListener("click", () => { Object.assign(mine, { rankings: {}, order: [], skipped: [] }); keep(); openNext(); byId("prompt-title").focus(); });
byId("gameable").addEventListener("change", showCount);
byId("begin").addEventListener("submit", startTraining);
begin();
