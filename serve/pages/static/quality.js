"use strict";
const range = (found, digits) => [found.low, found.high].map((value) => value.toFixed(digits)).join(" to ");

const figure = (found) => (found ? cell(found.value.toFixed(2), range(found, 2)) : cell("–"));
const quartiles = (found) => (found ? cell(found[1].toFixed(0), `${found[0].toFixed(0)} to ${found[2].toFixed(0)}`) : cell("–"));

const counted = (found, number) => (found ? cell(found.value.toFixed(2), `${range(found, 2)}, of ${number}`) : cell("–"));

function row(found, reliable) {
  const node = rowOf(found.annotator ?? "Everybody", cell(String(found.judged)), cell(String(found.shared)), figure(found.pairwise),
    figure(found.tau), figure(found.alpha), figure(found.unanimous), counted(reliable?.gold, reliable?.gold_items),
    counted(reliable?.consistency, reliable?.repeats), quartiles(found.seconds));
  node.classList.toggle("total", found.annotator === null);
  return node;
}

// Excluded annotators have no agreement with the others, because their rankings do not count; their reliability is why.
const excludedRow = (name, reliable) =>
  rowOf(`${name} (excluded)`, ...Array.from({ length: 6 }, () => cell("–")), counted(reliable?.gold, reliable?.gold_items),
    counted(reliable?.consistency, reliable?.repeats), cell("–"));

async function load() {
  try {
    const { counts, agreement, reliability, excluded } = await ask("/label/agreement");
    const none = agreement[0].shared ? "" : " No prompt has been ranked by two people yet, so there is no agreement to show.";
    byId("counts").textContent = `${counts.rankings} rankings; besides, ${counts.all_bad} times all answers were bad and ${counts.skipped} prompts were skipped.${none}`;
    byId("rows").replaceChildren(...agreement.map((found) => row(found, reliability[found.annotator])),
      ...excluded.map((name) => excludedRow(name, reliability[name])));
    byId("figures").hidden = false;
  } catch (error) { complain(error.message); }
}
startSession(load, () => {});
