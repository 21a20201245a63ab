"use strict";
// The timeline of the newest RLHF steps: a row of bars for each actor, and for each prompt, on one time axis.
const trace = (() => {
const KINDS = {
  draw: ["samples answers", "sampled"], weights: ["loads weights", "loaded weights"], start: ["starts", "started"],
  reward: ["computes rewards", "computed rewards"], learn: ["trains", "trained"], publish: ["publishes weights", "published weights"],
};
const LANES_SHOWN = 16, PROMPTS_SHOWN = 48;

const seconds = (value) => `${value < 10 ? value.toFixed(2) : value.toFixed(1)} s`;
const percent = (share) => `${(100 * share).toFixed(3)}%`;

function bar(kind, begin, end, axis, title) {
  const node = element("i", kind);
  node.style.left = percent((Math.max(begin, axis.begin) - axis.begin) / axis.length);
  node.style.width = percent((Math.min(end, axis.end) - Math.max(begin, axis.begin)) / axis.length);
  node.title = title;
  return node;
}

function lane(name, bars, axis, note = "") {
  const row = element("div", "lane"), time = element("div", "time");
  time.append(...axis.steps.slice(1).map((step) => bar("edge", step.begin, step.begin, axis, `step ${step.step}`)), ...bars);
  row.append(element("span", "who", name), time);
  if (note) row.append(element("span", "quiet", note));
  return row;
}

function axisOf(steps) {
  const begin = steps[0].begin, end = steps.at(-1).end;
  return { begin, end, length: Math.max(end - begin, 1e-9), steps };
}

function head(axis) {
  const row = element("div", "lane head"), time = element("div", "time");
  time.append(...axis.steps.map((step) => {
    const label = element("b", "", `step ${step.step}, ${seconds(step.end - step.begin)}`);
    label.style.left = percent((step.begin - axis.begin) / axis.length);
    label.style.width = percent((step.end - step.begin) / axis.length);
    return label;
  }));
  row.append(element("span", "who"), time);
  return row;
}

function span(one, axis) {
  const many = one.prompts.length, what = KINDS[one.what]?.[1] ?? one.what;
  const parts = [`${one.who} ${one.lost ? "was lost" : what}`, seconds(one.end - one.begin)];
  if (many) parts.push(`${many} prompt${many > 1 ? "s" : ""}`);
  if (one.tokens) parts.push(`${one.tokens.toLocaleString("en")} tokens`);
  return bar(one.lost ? "lost" : one.what, one.begin, one.end, axis, parts.join(", "));
}

// "rollout 2" before "rollout 10", then the rewards, then the learner.
function inOrder(names) {
  const place = (name) => (name.startsWith("rollout ") ? Number(name.slice(8)) : name === "rewards" ? 1e9 : 2e9);
  return names.sort((first, second) => place(first) - place(second));
}

// An actor's spans overlap: time that several of them cover counts once.
function covered(spans) {
  let end = -Infinity, sum = 0;
  for (const one of [...spans].sort((first, second) => first.begin - second.begin)) {
    sum += Math.max(0, one.end - Math.max(one.begin, end));
    end = Math.max(end, one.end);
  }
  return sum;
}

function lanes(axis) {
  const spans = axis.steps.flatMap((step) => step.spans).filter((one) => one.end > axis.begin);
  const present = new Map(axis.steps.at(-1).actors.map((actor) => [actor.who, actor]));
  return inOrder([...new Set([...present.keys(), ...spans.map((one) => one.who)])]).map((who) => {
    const own = spans.filter((one) => one.who === who), actor = present.get(who);
    const sampled = own.filter((one) => one.what === "draw" && !one.lost);
    const busy = covered(sampled), tokens = sampled.reduce((sum, one) => sum + one.tokens, 0);
    const rate = busy ? `, ${Math.round(tokens / busy).toLocaleString("en")} tokens/s` : "";
    const note = actor ? `weights ${actor.version}, ${actor.state}${rate}` : who.startsWith("rollout ") ? "gone" : "";
    return lane(who, own.map((one) => span(one, axis)), axis, note);
  });
}

function whereabouts(prompt, axis) {
  const draws = axis.steps.flatMap((step) => step.spans).filter(
    (one) => one.what === "draw" && one.prompts.includes(prompt.id) && one.begin >= prompt.given && one.begin < prompt.handed_out);
  const step = axis.steps.find((one) => one.prompts.includes(prompt)), learned = step.spans.find((one) => one.what === "learn");
  const bars = [
    bar("waits", prompt.given, prompt.handed_out, axis, `with the rollout actors for ${seconds(prompt.handed_out - prompt.given)}`),
    ...draws.map((one) => span(one, axis)),
    bar("reward", prompt.handed_out, learned.begin, axis, `rewarded and waiting for the learner, ${seconds(learned.begin - prompt.handed_out)}`),
    span({ ...learned, prompts: [] }, axis),
  ];
  const behind = prompt.behind ? `, ${prompt.behind} version${prompt.behind > 1 ? "s" : ""} behind` : "";
  return lane(prompt.name || prompt.id.slice(prompt.id.indexOf(":") + 1), bars, axis, `${prompt.tokens.toLocaleString("en")} tokens${behind}`);
}

function staleness(axis) {
  const counts = new Map(), all = axis.steps.flatMap((step) => step.prompts);
  for (const prompt of all) counts.set(prompt.behind, (counts.get(prompt.behind) ?? 0) + 1);
  const shares = [...counts].sort(([first], [second]) => first - second).map(([behind, count]) =>
    `${Math.round((100 * count) / all.length)} % by ${behind ? `weights ${behind} version${behind > 1 ? "s" : ""} behind` : "the learner's own weights"}`);
  return `Prompts were answered ${shares.join(", ")}; ${axis.steps.at(-1).waiting} are with the rollout actors still.`;
}

function key() {
  const list = element("p", "quiet kinds");
  list.append(...Object.entries({ ...KINDS, lost: ["was lost"] }).map(([kind, [name]]) => {
    const node = element("span", "", name);
    node.prepend(element("i", kind));
    return node;
  }));
  return list;
}

function folded(title, ...parts) {
  const more = element("details");
  more.append(element("summary", "", title), ...parts);
  return more;
}

// The elements that show a stage's trace in its card.
return function trace(steps) {
  const axis = axisOf(steps), rows = lanes(axis), prompts = steps.at(-1).prompts;
  const newest = axisOf(steps.slice(-2)), given = Math.min(...prompts.map((prompt) => prompt.given));
  const from = { ...newest, begin: Math.max(newest.begin, given) };
  from.length = Math.max(from.end - from.begin, 1e-9);
  const box = (own, ...parts) => { const node = element("div", "trace"); node.append(head(own), ...parts); return node; };
  const shown = [...prompts].sort((first, second) => second.handed_out - second.given - (first.handed_out - first.given)).slice(0, PROMPTS_SHOWN);
  return [
    folded(`Who did what in steps ${steps[0].step} to ${steps.at(-1).step}`, key(), box(axis, ...rows.slice(0, LANES_SHOWN)),
      ...(rows.length > LANES_SHOWN ? [folded(`${rows.length - LANES_SHOWN} more`, box(axis, ...rows.slice(LANES_SHOWN)))] : []),
      element("p", "quiet", staleness(axis))),
    folded(`Where each prompt of step ${steps.at(-1).step} was`,
      element("p", "quiet", `Those that took longest first${prompts.length > shown.length ? `, ${shown.length} of ${prompts.length}` : ""}.`),
      box({ ...from, steps: newest.steps.filter((step) => step.end > from.begin) }, ...shown.map((prompt) => whereabouts(prompt, { ...from, steps: newest.steps })))),
  ];
};
})();
