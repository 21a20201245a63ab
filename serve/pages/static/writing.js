"use strict";
// Asks models for answers, and writes these into the chat while they are streamed.
const KEEP_EVERY_MS = 1_000;
let running = null;              // the AbortController of the answers being written
const beingWritten = new Set();  // their turns

const system = () => byId("system").value.trim();
const continuesOnly = (name) => cards.get(name)?.chat === false;

function number(id, low, high, fallback) {
  const value = Number(byId(id).value);
  return byId(id).value !== "" && Number.isFinite(value) ? Math.min(high, Math.max(low, value)) : fallback;
}

function requestFor(name, messages) {
  const most = cards.get(name)?.max_model_len ?? 1e6;
  const common = {
    model: name, stream: true, stream_options: { include_usage: true },
    temperature: number("temperature", 0, 2, 0.7), max_tokens: Math.round(number("max-tokens", 1, most, 64)),
  };
  if (continuesOnly(name)) return ["/v1/completions", { ...common, prompt: messages.at(-1).content }];
  const first = system() ? [{ role: "system", content: system() }] : [];
  return ["/v1/chat/completions", { ...common, messages: [...first, ...messages] }];
}

async function reason(response) {
  try { return (await response.json()).error.message; } catch { return `the server answered ${response.status}`; }
}

// Whether the server may store what is sent, where the page asks.
const consent = () => (byId("record") ? { "X-Triptych-Record": byId("record").checked ? "yes" : "no" } : {});
const posted = (path, body, signal) => fetchWithKey(path, { method: "POST", headers: { "Content-Type": "application/json", ...consent() }, body: JSON.stringify(body), signal });

// A small model has a small context: when the conversation no longer fits, its oldest exchanges are left out.
async function ask(name, messages, signal) {
  for (let dropped = 0; ; dropped += 2) {
    const [path, body] = requestFor(name, messages.slice(dropped)), response = await posted(path, body, signal);
    if (response.ok) return { response, dropped };
    const message = await reason(response);
    const full = response.status === 400 && /context length/.test(message);
    if (!full) throw new Error(message);
    if (messages.length - dropped < 3) throw new Error(`This is longer than the ${cards.get(name)?.max_model_len ?? ""} tokens that ${name} can read.`);
  }
}

// Sends a thumb, with the conversation, to the run's feedback database.
function rating(where, index) {
  return async (good) => {
    const record = where.turns[index], sent = messagesTo(where, record.parent, record.first).map((one) => one.message);
    const messages = record.system ? [{ role: "system", content: record.system }, ...sent] : sent;
    const body = { request: record.request, model: record.model ?? record.who, weights: record.weights, messages, answer: record.text, good };
    try {
      const response = await posted("/thumbs", body);
      if (!response.ok) throw new Error(await reason(response));
    } catch (error) {
      complain(`Your rating was not stored: ${error.message}`);
      return false;
    }
    record.good = good;
    // The chat may have been left, or left and opened again, before the server answered.
    keepThumb(where.id, record.id, good);
    const shown = chat.id === where.id && chat.turns.find((turn) => turn.id === record.id);
    if (shown) shown.good = good;
    byId("status").textContent = good === null ? "Taken back." : `Stored as a ${good ? "good" : "poor"} answer, thank you.`;
    return true;
  };
}

// Streams the answer of one model into its turn, and into the page while the chat is shown.
async function write(where, record, signal) {
  const started = performance.now(), messages = messagesTo(where, record.parent, record.first);
  try {
    const { response, dropped } = await ask(record.who, messages.map((one) => one.message), signal);
    if (dropped) record.first = messages[dropped].depth;
    record.request = response.headers.get("x-request-id");
    record.weights = response.headers.get("x-triptych-weights") ?? "";
    record.model = response.headers.get("x-triptych-model") ?? record.who;
    let end = "stop";
    for await (const event of streamedEvents(response)) {
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices[0], text = choice?.delta?.content ?? choice?.text ?? "", follow = isAtEnd();
      record.text += text;
      record.seconds = (performance.now() - started) / 1000;
      record.tokens = event.usage?.completion_tokens ?? record.tokens;
      end = choice?.finish_reason ?? end;
      if (chat !== where) continue;
      places.get(record).answer.appendData(text);
      if (follow) toEnd();
    }
    Object.assign(record, { end, error: "" });
  } catch (error) {
    Object.assign(record, error.name === "AbortError" ? { end: "stopped", error: "" } : { end: "failed", error: error.message });
  }
  record.seconds = (performance.now() - started) / 1000;
  beingWritten.delete(record);
  if (chat === where) { const follow = isAtEnd(); complete(record); renderAnswers([record]); if (follow) toEnd(); }
}

// Has models answer a question, each with an answer of its own; those of several models are shown side by side.
async function answer(where, question, names) {
  const control = new AbortController(), { text } = where.turns[question];
  const records = names.map((who) => {
    const continues = continuesOnly(who);
    // Until it is complete it counts as interrupted, for the case that this page is left.
    const record = { role: "assistant", text: "", parent: question, who, continued: continues ? text : "", end: "failed", error: INTERRUPTED, tokens: 0, system: continues ? "" : system(), first: firstSent(where, question, continues) };
    addedTurn(where, record);
    beingWritten.add(record);
    return record;
  });
  if (records.length > 1) where.turns[question].chosen = null;
  running = control;
  send.hidden = true; stopButton.hidden = false; model.disabled = true;
  byId("status").textContent = records.length > 1 ? `${records.length} models are writing.` : "The model is writing.";
  keepChat(where);
  show(where);
  tellOfBranches(where);
  const keeping = setInterval(() => keepChat(where), KEEP_EVERY_MS);
  await Promise.all(records.map((record) => write(where, record, control.signal)));
  clearInterval(keeping);
  keepChat(where);
  if (chat === where) byId("status").textContent = records.map((record) => `${record.who}: ${record.error || record.text || "no text"}`).join(" ");
  if (running !== control) return;
  running = null;
  send.hidden = false; stopButton.hidden = true; model.disabled = false;
  if (chat === where && takenOver.has(where)) showTakenOver();
  allowActs();
  input.focus({ preventScroll: true });
}
