"use strict";
const rating = (found) => cell(found.value.toFixed(0), `${found.low.toFixed(0)} to ${found.high.toFixed(0)}`);

// The next better model whose interval meets that of a model: the votes are too few to tell which of the two is better.
function votesCell(found, models) {
  const better = models.filter((other) => other.value > found.value && other.low <= found.high).at(-1);
  return cell(String(found.votes), better ? `too few votes to tell from ${better.model}` : "");
}

async function load() {
  try {
    const { votes, bad, raw, controlled } = await ask("/compare/figures");
    const equal = new Map(controlled.models.map((found) => [found.model, found]));
    byId("counts").textContent = `${votes} vote${votes === 1 ? "" : "s"}; besides, all answers were bad ${bad} time${bad === 1 ? "" : "s"}.${votes ? "" : " There is nothing to rate yet."}`;
    const models = [...raw.models].sort((one, other) => other.value - one.value);
    byId("rows").replaceChildren(...models.map((found) => rowOf(found.model, rating(found), rating(equal.get(found.model)), votesCell(found, models))));
    const points = controlled.length?.map((value) => (value / 3).toFixed(0));
    byId("length").textContent = points ? `Being twice as long as the other is worth ${points[0]} points (${points[1]} to ${points[2]}).` : "";
    byId("figures").hidden = false;
  } catch (error) { complain(error.message); }
}
startSession(load, () => {});
