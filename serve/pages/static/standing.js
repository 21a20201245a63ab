"use strict";
// The top of the run page: the stage at work, the verdict with the figures of the three models, and the differences
// between two rounds.
const VERDICT_LINES = 3, MODEL_ROWS = 6;

function showNow(now) {
  byId("now-part").hidden = !now;
  if (!now) return;
  byId("now-title").textContent = `At work: ${now.stage}${now.round > 1 ? `, round ${now.round}` : ""}`;
  const step = now.step === undefined ? "It has not finished a step yet." : `Step ${now.step}${now.steps ? ` of ${now.steps}` : ""}`;
  const left = now.left == null ? "" : `, about ${duration(Math.max(1, now.left))} left`;
  const figures = Object.entries(now.figures ?? {}).map(([name, value]) => `${words(name)} ${number(value)}`).join(", ");
  byId("now-text").textContent = `${step}${left}${figures ? `; ${figures}` : ""}`;
  byId("now-bar").hidden = !now.steps;
  if (now.steps) byId("now-bar").value = now.step / now.steps;
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
  byId("verdict").replaceChildren(...lines.slice(0, VERDICT_LINES), ...(rest.length ? [foldedUnder(`${rest.length} more sentences`, ...rest)] : []));
  const more = run.models.slice(MODEL_ROWS);
  byId("models").replaceChildren(...(run.models.length ? [modelsTable(run.models.slice(0, MODEL_ROWS))] : []),
    ...(more.length ? [foldedUnder(`${more.length} more figures, which RLHF changed less`, modelsTable(more))] : []));
  byId("verdict-part").hidden = run.verdict.length === 0;
}

// A link carries no key: with one, the report is fetched and kept as a file.
byId("report").addEventListener("click", async (event) => {
  if (!sessionStorage.getItem("triptych key")) return;
  event.preventDefault();
  const response = await fetchWithKey("/runs/report");
  if (!response.ok) return;
  const link = Object.assign(element("a"), { href: URL.createObjectURL(await response.blob()), download: `${byId("name").textContent}-report.html` });
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
