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

// Krippendorff (2004) calls data with an alpha of 0.8 reliable, and allows tentative conclusions from 0.667 on.
function alphaAdvice(found) {
  if (!found.alpha) return "No prompt has been ranked by two people yet. Have two rank each: serve.people_per_prompt, or label --people 2.";
  const { value } = found.alpha, said = `Krippendorff's alpha is ${value.toFixed(2)} (${range(found.alpha, 2)}), which is`;
  if (value >= 0.8) return `${said} good: there is nothing to do.`;
  if (value >= 0.667) return `${said} fair: look at the prompts below, and agree on what is better.`;
  return `${said} poor: a reward model learns little from these rankings. Look at the prompts below, and write down what is better before more is ranked.`;
}

const belowGold = (reliability) => Object.values(reliability).filter((one) => one.gold && one.gold.high < 0.8).map((one) =>
  `${one.annotator} orders the pairs of ${one.gold_items} gold items rightly in ${Math.round(100 * one.gold.value)} % only: talk to them, or leave their rankings out with triptych annotator exclude.`);

function showAdvice({ agreement, reliability, disputed }) {
  byId("todo").replaceChildren(...[alphaAdvice(agreement[0]), ...belowGold(reliability)].map((line) => element("li", "", line)));
  byId("disputed-part").hidden = !disputed.length;
  byId("disputed").replaceChildren(...disputed.map((one) => {
    const item = element("li"), link = Object.assign(element("span", "", one.asked), { dir: "auto" });
    item.append(link, element("span", "quiet", ` ${one.people} people order ${Math.round(100 * one.alike)} % of the pairs alike`));
    return item;
  }));
}

const chosen = (counts) => (counts.chosen ? ` ${counts.chosen} of the rankings are of prompts that collect.select chose: the agreement leaves them out, and is that on prompts which came at random.` : "");

async function load() {
  try {
    const found = await ask("/label/agreement"), { counts, agreement, reliability, excluded } = found;
    showAdvice(found);
    const none = agreement[0].shared ? "" : " No prompt has been ranked by two people yet, so there is no agreement to show.";
    byId("counts").textContent = `${counts.rankings} rankings; besides, ${counts.all_bad} times all answers were bad and ${counts.skipped} prompts were skipped.${chosen(counts)}${none}`;
    byId("rows").replaceChildren(...agreement.map((found) => row(found, reliability[found.annotator])),
      ...excluded.map((name) => excludedRow(name, reliability[name])));
    byId("figures").hidden = false;
  } catch (error) { complain(error.message); }
}
startSession(load, () => {});
