"use strict";
const LOOK_AGAIN_MS = 5_000, LIST_AGAIN_MS = 60_000;
// So many are shown at once; the rest is folded.
const FIGURES_SHOWN = 8, CURVES_SHOWN = 4;
const NAMES = { base: "Base", sft: "Fine-tuned", policy: "Policy", before: "Before training", now: "Now", data: "In the data" };
let shown = "", listed = -Infinity;

function figure([name, found]) {
  const node = element("div", "figure");
  const detail = found.low === undefined ? "" : ` (${number(found.low)} to ${number(found.high)})`;
  node.append(element("strong", "", number(found.value)), element("span", "", words(name) + detail));
  return node;
}

// The first entries, and the others folded under a summary.
function some(className, entries, make, count, what) {
  const parts = [entries.slice(0, count), entries.slice(count)].map((part) => {
    const node = element("div", className);
    node.append(...part.map(make));
    return node;
  });
  if (!entries.length) return [];
  if (entries.length <= count) return [parts[0]];
  const more = element("details");
  more.append(element("summary", "", `${entries.length - count} more ${what}`), parts[1]);
  return [parts[0], more];
}

function facts(stage, made) {
  const list = element("dl"), short = (value) => element("code", "", value.slice(0, 12));
  const add = (name, ...parts) => { const said = element("dd"); said.append(...parts); list.append(element("dt", "", name), said); };
  add("Duration", `${duration(stage.seconds)}, with version ${stage.version}`);
  const inputs = Object.entries(stage.inputs).flatMap(([folder, mark]) => [
    `${folder} `, short(mark), made.get(folder)?.fingerprint === mark ? "; " : " (made again since); "]);
  if (inputs.length) add("Inputs", ...inputs.slice(0, -1), inputs.at(-1).replace(/; $/, ""));
  add("Fingerprint", short(stage.fingerprint));
  if (stage.weights) add("Weights", short(stage.weights));
  return list;
}

function card(stage, made) {
  const node = element("section", "card"), title = element("div", "title"), heading = element("h2", "", stage.name);
  node.id = `stage-${stage.name}`;
  heading.id = `title-${stage.name}`;
  node.setAttribute("aria-labelledby", heading.id);
  title.append(heading, element("span", `badge ${stage.state}`, stage.state), element("span", "quiet", stage.why));
  node.append(title, element("p", "quiet", `${stage.purpose[0].toUpperCase()}${stage.purpose.slice(1)}.`));
  if (stage.fingerprint) node.append(facts(stage, made));
  node.append(...some("figures", Object.entries(stage.figures ?? {}), figure, FIGURES_SHOWN, "figures"));
  node.append(...some("curves", Object.entries(stage.curves), curve, CURVES_SHOWN, "curves"));
  if (stage.written) {
    const more = element("details");
    more.append(element("summary", "", `What it wrote at step ${stage.written.step}`), ...stage.written.samples.map(sample));
    node.append(more);
  }
  if (stage.trace) node.append(...trace(stage.trace));
  if (stage.rollouts) {
    const more = element("details");
    more.append(
      element("summary", "", `Answers sampled at step ${stage.rollouts.step}, token by token`),
      element("p", "quiet", "For each prompt, the answers with the highest and the lowest reward. Underlined tokens are more probable under the policy than under the fine-tuned model, dotted ones less. The shade deepens with the logarithm of the ratio; point at a token to read it."),
      ...stage.rollouts.rollouts.map(rollout));
    node.append(more);
  }
  return node;
}

// The level of shading of a token, from -3 to 3: half a nat of log ratio each.
const lean = (ratio) => Math.max(-3, Math.min(3, Math.trunc(ratio * 2)));

function rollout(row) {
  const node = element("article", "sample"), said = element("div", "said");
  said.append(...row.answers.map((answer) => {
    const box = element("div");
    box.append(element("span", "", `reward ${answer.reward.toFixed(2)}`), ...answer.tokens.map(([text, ratio]) => {
      const token = element("b", ratio === null ? "other" : `lean${lean(ratio)}`, text);
      if (ratio !== null) token.title = `log ratio ${ratio.toFixed(2)}`;
      return token;
    }));
    return box;
  }));
  node.append(element("h3", "", row.given), said);
  return node;
}

function step(stage) {
  const node = element("li"), link = element("a", stage.state);
  link.href = `#stage-${stage.name}`;
  link.append(element("strong", "", stage.name), element("span", "quiet", stage.seconds === undefined ? stage.state : `${stage.state}, ${duration(stage.seconds)}`));
  node.append(link);
  return node;
}

function samplesLink(count) {
  const node = element("li"), link = element("a");
  link.href = "#samples-part";
  link.append(element("strong", "", "samples"), element("span", "quiet", `${count} questions`));
  node.append(link);
  return node;
}

function sample(row) {
  const node = element("article", "sample"), said = element("div", "said");
  said.append(...Object.entries(row.answers).map(([model, text]) => {
    const answer = element("div");
    answer.append(element("span", "", NAMES[model] ?? model), text || "(nothing)");
    return answer;
  }));
  node.append(element("h3", "", row.question), said);
  return node;
}

const interval = (found, digits) => (found?.low == null ? "" : `${found.low.toFixed(digits)} to ${found.high.toFixed(digits)}`);

function roundRow(one) {
  const gain = one.gain, accuracy = one.accuracy;
  return rowOf(`${one.round}${one.present ? " (present)" : ""}`, said(one.verdict),
    one.report ? reportLink({ round: one.round }, `round ${one.round}`) : cell(""), cell(one.when), cell(one.rankings ?? ""),
    cell(accuracy ? accuracy.value.toFixed(3) : "", interval(accuracy, 3)),
    cell(gain ? signed(gain.change) : "", interval(gain, 2)), cell((one.weights ?? "").slice(0, 12)));
}

// A sentence in a table, which may take several lines.
const said = (text) => Object.assign(element("td", "sentence", text), { dir: "auto" });

function runRow(one, here) {
  const row = rowOf(one.name, said(one.trouble || one.verdict), one.report ? reportLink({ name: one.name }, one.name) : cell(""),
    cell(one.when), cell(`${one.stages} of ${one.of}`, one.at_work ? "at work" : ""), cell(String(one.rounds)));
  row.classList.toggle("gone", Boolean(one.trouble));
  if (here) row.firstChild.append(element("small", "", " served here"));
  return row;
}

// Lists the runs beside this one, now and then.
async function listRuns() {
  if (performance.now() - listed < LIST_AGAIN_MS) return;
  listed = performance.now();
  const response = await fetchWithKey("/runs/list", { again: true });
  if (!response.ok) throw new Error(`the list of runs is missing, the server answered ${response.status}`);
  const { runs, here, count } = await response.json();
  byId("runs").replaceChildren(...runs.map((one) => runRow(one, one.name === here)));
  byId("runs-said").textContent = `The run that is served and the others in its folder, those that changed last first${count > runs.length ? `: ${runs.length} of ${count}` : ""}.`;
  byId("runs-part").hidden = false;
}

function decision(one) {
  const node = element("li");
  node.append(element("strong", "", `Round ${one.round}, ${one.step}: ${one.decision}. `), one.why, element("span", "quiet", ` ${one.when}`));
  return node;
}

// Of the last judgements: who gave each, and the policies of which rounds learned from it. Fetched when somebody looks.
async function showJudgements() {
  if (!byId("judgements-part").open) return;
  try {
    const response = await fetchWithKey("/runs/judgements"), found = await response.json();
    if (!response.ok) throw new Error(found.error?.message ?? `the server answered ${response.status}`);
    const { judgements, count, gone } = found;
    byId("judgements-count").textContent = `${count} judgement${count === 1 ? "" : "s"}${count > judgements.length ? `, of which ${judgements.length} are shown` : ""}. ${
      gone ? `${gone} of them ${gone === 1 ? "is" : "are"} deleted, changed or excluded since: the next round is made without.` : "All are still there."}`;
    byId("judgements").replaceChildren(...judgements.map((one) => {
      const row = rowOf(`${one.source} ${one.id}`, cell(one.annotator || "(no key)"), cell(one.when),
        cell(one.rounds.map((round) => `round ${round}`).join(", "), one.gone ? "gone by now" : ""));
      row.classList.toggle("gone", one.gone);
      return row;
    }));
  } catch (error) { byId("judgements-count").textContent = `They could not be read: ${error.message}`; }
}

async function answerRound(approved) {
  const body = JSON.stringify({ round: Number(byId("answer-part").dataset.round), approved });
  for (const button of [byId("approve"), byId("refuse")]) button.disabled = true;
  try {
    const response = await fetchWithKey("/admin/round", { method: "POST", headers: { "Content-Type": "application/json" }, body });
    if (!response.ok) throw new Error((await response.json()).error?.message ?? `the server answered ${response.status}`);
    byId("answer-why").textContent = approved ? "Approved: the loop goes on." : "Refused: the loop sets the round aside.";
  } catch (error) {
    byId("answer-why").textContent = `Not stored: ${error.message}`;
    for (const button of [byId("approve"), byId("refuse")]) button.disabled = false;
  }
}

function showAnswer(run) {
  const part = byId("answer-part"), number = String(run.answerable ?? "");
  part.hidden = !number;
  if (part.dataset.round === number) return;
  part.dataset.round = number;
  byId("answer-why").textContent = run.decisions.find((one) => one.step === "compare")?.why ?? "";
  for (const button of [byId("approve"), byId("refuse")]) button.disabled = false;
}

function showRounds(run) {
  showNow(run.now, run.answerable);
  showVerdict(run);
  showChanged(run);
  offerRounds(run.rounds);
  byId("rounds").replaceChildren(...run.rounds.map(roundRow));
  byId("rounds-part").hidden = run.rounds.length === 0;
  byId("decisions").replaceChildren(...run.decisions.map(decision));
  byId("decisions-title").hidden = run.decisions.length === 0;
}

function show(run) {
  showRounds(run);
  showAnswer(run);
  const done = run.stages.filter((stage) => stage.state === "done").length;
  const working = run.stages.find((stage) => stage.state === "working");
  const made = new Map(run.stages.map((stage) => [stage.folder, stage]));
  document.title = `Triptych: ${run.name}`;
  byId("name").textContent = run.name;
  byId("state").textContent = `${done} of ${run.stages.length} stages done${working ? `; ${working.name} is at work` : ""}`;
  // Opened details stay open when the numbers change.
  const place = (node) => `${node.parentElement.id} ${[...node.parentElement.children].indexOf(node)}`;
  const open = new Set([...document.querySelectorAll("#stages details[open]")].map(place));
  byId("flow").replaceChildren(...run.stages.map(step), ...(run.samples.length ? [samplesLink(run.samples.length)] : []));
  byId("stages").replaceChildren(...run.stages.map((stage) => card(stage, made)));
  for (const node of byId("stages").querySelectorAll("details")) node.open = open.has(place(node));
  byId("samples").replaceChildren(...run.samples.map(sample));
  byId("samples-part").hidden = run.samples.length === 0;
}

async function look() {
  try {
    const response = await fetchWithKey("/runs/data", { again: true }), text = await response.text();
    if (!response.ok) throw new Error(JSON.parse(text).error?.message ?? `the server answered ${response.status}`);
    if (text !== shown) show(JSON.parse(text));
    shown = text;
    await listRuns();
    byId("trouble").hidden = true;
  } catch (error) {
    if (!shown) byId("state").textContent = "";
    byId("trouble").textContent = `The run could not be read: ${error.message}`;
    byId("trouble").hidden = false;
  }
  setTimeout(() => (document.hidden ? document.addEventListener("visibilitychange", look, { once: true }) : look()), LOOK_AGAIN_MS);
}
byId("approve").addEventListener("click", () => answerRound(true));
byId("refuse").addEventListener("click", () => answerRound(false));
byId("judgements-part").addEventListener("toggle", showJudgements);
look();
