"use strict";
const rating = (found) => cell(found.value.toFixed(0), `${found.low.toFixed(0)} to ${found.high.toFixed(0)}`);

async function load() {
  try {
    const { votes, bad, raw, controlled } = await ask("/compare/figures");
    const equal = new Map(controlled.models.map((found) => [found.model, found]));
    byId("counts").textContent = `${votes} vote${votes === 1 ? "" : "s"}; besides, all answers were bad ${bad} time${bad === 1 ? "" : "s"}.${votes ? "" : " There is nothing to rate yet."}`;
    byId("rows").replaceChildren(...raw.models.map((found) => rowOf(found.model, rating(found), rating(equal.get(found.model)), cell(String(found.votes)))));
    const points = controlled.length?.map((value) => (value / 3).toFixed(0));
    byId("length").textContent = points ? `Being twice as long as the other is worth ${points[0]} points (${points[1]} to ${points[2]}).` : "";
    byId("figures").hidden = false;
  } catch (error) { complain(error.message); }
}
startSession(load, () => {});
