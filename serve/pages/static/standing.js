"use strict";
// The top of the run page: the stage at work, the verdict with the figures of the three models, and the differences
// between two rounds.
const VERDICT_LINES = 3, MODEL_ROWS = 6;

function showNow(now, answerable) {
  byId("now-bar").hidden = !now?.steps;
  if (!now) {
    byId("now-text").textContent = answerable ? `No stage is at work: the policy of round ${answerable} waits for your answer.` : "No stage is at work.";
    return;
  }
  const step = now.step === undefined ? "it has not finished a step yet" : `step ${now.step}${now.steps ? ` of ${now.steps}` : ""}`;
  const left = now.left == null ? "" : `, about ${duration(Math.max(1, now.left))} left`;
  const figures = Object.entries(now.figures ?? {}).map(([name, value]) => `${words(name)} ${number(value)}`).join(", ");
  byId("now-text").textContent = `${now.stage}${now.round > 1 ? ` of round ${now.round}` : ""} is at work: ${step}${left}${figures ? `; ${figures}` : ""}.`;
  if (now.steps) byId("now-bar").value = now.step / now.steps;
}

const signed = (value) => `${value > 0 ? "+" : ""}${value.toFixed(2)}`;
const ofRound = {
  rankings: (one) => one.rankings?.toString(),
  "the reward model's accuracy": (one) => one.accuracy?.value.toFixed(3),
  "the gain in reward": (one) => one.gain && signed(one.gain.change),
};

// The newest round beside the one before, and the last decision of the loop.
function showChanged(run) {
  const [newest, before] = run.rounds, [last] = run.decisions, list = element("ul");
  const dated = (one) => `round ${one.round}${one.when ? ` of ${one.when}` : ""}`;
  const said = !newest ? "No round of judgements has been begun." : before ? `From ${dated(before)} to ${dated(newest)}:` : `${dated(newest)[0].toUpperCase()}${dated(newest).slice(1)} is the first: there is none to compare it with.`;
  if (before) {
    const known = Object.entries(ofRound).filter(([, of]) => of(before) || of(newest));
    list.append(...known.map(([name, of]) => element("li", "", `${name}: ${of(before) ?? "none"} → ${of(newest) ?? "not known yet"}`)));
    const more = element("li"), link = Object.assign(element("a", "", "everything that differs"), { href: "#difference-part" });
    link.addEventListener("click", () => { byId("difference-part").open = true; });
    more.append(link);
    list.append(more);
  }
  byId("changed").replaceChildren(element("p", "", said), ...(before ? [list] : []),
    ...(last ? [element("p", "quiet", `Last decision of the loop: round ${last.round}, ${last.step} ${last.decision}, ${last.when}.`)] : []));
}

const share = (found) => cell(found.value.toFixed(2), `${found.low.toFixed(2)} to ${found.high.toFixed(2)}`);
function modelsTable(rows) {
  const node = element("div", "wide"), table = element("table"), head = element("thead"), names = element("tr"), body = element("tbody");
  Object.assign(node, { tabIndex: 0 });
  node.setAttribute("role", "region");
  node.setAttribute("aria-label", "Figures of the three models");
  for (const name of ["Held-out questions", "Cases", "Base", "Fine-tuned", "Policy"]) names.append(Object.assign(element("th", "", name), { scope: "col" }));
  head.append(names);
  body.append(...rows.map((row) => rowOf(words(row.name), cell(String(row.policy.n)), share(row.base), share(row.sft), share(row.policy))));
  table.append(head, body);
  node.append(table);
  return node;
}

function foldedUnder(summary, ...nodes) {
  const more = element("details");
  more.append(element("summary", "", summary), ...nodes);
  return more;
}

function showVerdict(run) {
  const lines = run.verdict.map((line) => element("p", "", line));
  const rest = lines.slice(VERDICT_LINES);
  byId("verdict").replaceChildren(...lines.slice(0, VERDICT_LINES), ...(rest.length ? [foldedUnder(`${rest.length} more sentence${rest.length === 1 ? "" : "s"}`, ...rest)] : []));
  if (!lines.length) byId("verdict").append(element("p", "", run.rounds[1]?.verdict
    ? `Not known yet of round ${run.rounds[0].round}. Of round ${run.rounds[1].round}: ${run.rounds[1].verdict}` : "Not known yet: the stage evaluate compares the models."));
  const more = run.models.slice(MODEL_ROWS);
  byId("models").replaceChildren(...(run.models.length ? [modelsTable(run.models.slice(0, MODEL_ROWS))] : []),
    ...(more.length ? [foldedUnder(`${more.length} more figures, which RLHF changed less`, modelsTable(more))] : []));
  byId("models-part").hidden = run.models.length === 0;
  byId("report").hidden = run.verdict.length === 0;
  byId("standing").hidden = false;
}

// A link to the report of a round, or of another run; what names it is part of the file's name, too.
function reportLink(query, name) {
  const link = Object.assign(element("a", "report", "report"), { href: `/runs/report?${new URLSearchParams(query)}`, target: "_blank", rel: "noopener" });
  link.setAttribute("aria-label", `Report of ${name}`);
  link.dataset.file = name;
  const node = element("td");
  node.append(link);
  return node;
}

// A link carries no key: with one, the report is fetched and kept as a file.
document.addEventListener("click", async (event) => {
  const asked = event.target.closest?.("a.report");
  if (!asked || !sessionStorage.getItem("triptych key")) return;
  event.preventDefault();
  const response = await fetchWithKey(asked.getAttribute("href"));
  if (!response.ok) {
    byId("trouble").textContent = `The report could not be read: the server answered ${response.status}`;
    byId("trouble").hidden = false;
    return;
  }
  const link = Object.assign(element("a"), { href: URL.createObjectURL(await response.blob()), download: `${asked.dataset.file ?? byId("name").textContent}-report.html` });
  link.click();
  URL.revokeObjectURL(link.href);
});

function offerRounds(rounds) {
  const numbers = rounds.map((one) => one.round), offered = String(numbers);
  byId("difference-part").hidden = numbers.length < 2;
  if (byId("first").dataset.offered === offered) return;
  for (const [id, chosen] of [["first", numbers[1]], ["second", numbers[0]]]) {
    byId(id).dataset.offered = offered;
    byId(id).replaceChildren(...numbers.map((one) => new Option(one, one, one === chosen, one === chosen)));
  }
  showDifference();
}

async function showDifference() {
  if (!byId("difference-part").open) return;
  const [first, second] = [byId("first").value, byId("second").value];
  try {
    const response = await fetchWithKey(`/runs/difference?first=${first}&second=${second}`), found = await response.json();
    if (!response.ok) throw new Error(found.error?.message ?? found.detail ?? `the server answered ${response.status}`);
    byId("first-name").textContent = `Round ${first}`;
    byId("second-name").textContent = `Round ${second}`;
    const cut = found.count > found.rows.length ? ` The first ${found.rows.length} of ${found.count} differences:` : "";
    byId("difference-said").textContent = `${found.judgements[0].toUpperCase()}${found.judgements.slice(1)}.${cut}`;
    byId("difference").replaceChildren(...found.rows.map(([stage, ...cells]) => rowOf(stage, ...cells.map((text) => cell(text)))));
    const names = Object.keys(found.curves[second]).filter((name) => found.curves[first][name]);
    byId("difference-curves").replaceChildren(...names.map((name) => curveOver(name, found.curves[second][name], `round ${first}`, found.curves[first][name])));
  } catch (error) { byId("difference-said").textContent = `The rounds could not be compared: ${error.message}`; }
}

byId("difference-part").addEventListener("toggle", showDifference);
for (const id of ["first", "second"]) byId(id).addEventListener("change", showDifference);
