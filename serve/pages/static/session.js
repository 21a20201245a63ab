"use strict";
// Sign-in with a personal token, which this browser stores, and requests that carry it.
// Shows an error in the page's place for it; an empty text hides it.
function complain(text) { byId("trouble").textContent = text; byId("trouble").hidden = !text; }

class Refused extends Error {}
async function request(path, body, signal) {
  const headers = { Authorization: `Bearer ${localStorage.getItem("triptych token") ?? ""}` };
  if (body) headers["Content-Type"] = "application/json";
  const response = await reach(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({}));
  const reason = answer.error?.message ?? (typeof answer.detail === "string" ? answer.detail : `the server answered ${response.status}`);
  if (response.status === 401 || response.status === 403) signOut();
  throw Object.assign(response.status < 500 ? new Refused(reason) : new Error(reason), { status: response.status });
}
async function ask(path, body) {
  const response = await request(path, body);
  return response.status === 204 ? null : response.json();
}

let leaveSession = () => {};
function signOut() {
  localStorage.removeItem("triptych token");
  leaveSession();
  for (const part of document.querySelectorAll("main > :not(#trouble)")) part.hidden = part.id !== "sign-in";
  byId("sign-out").hidden = true;
  byId("token").focus();
  // On a machine where nobody has a key or a token yet.
  fetch("/label/guest").then((response) => response.json()).then(({ guest }) => { byId("as-guest").hidden = !guest; }, () => {});
}

// Calls `enter` now or when someone has signed in, and `leave` when they sign out or their token is refused.
function startSession(enter, leave) {
  leaveSession = leave;
  const enterWith = (token) => { localStorage.setItem("triptych token", token); begin(); };
  const begin = () => { byId("sign-in").hidden = true; byId("sign-out").hidden = false; complain(""); enter(); };
  byId("sign-in").addEventListener("submit", (event) => {
    event.preventDefault();
    const given = byId("token").value.trim();
    byId("token").value = "";
    enterWith(given);
  });
  byId("as-guest").addEventListener("click", () => enterWith("guest"));
  byId("sign-out").addEventListener("click", () => { complain(""); signOut(); });
  // A link may carry the token after the #, a part that is never sent to a server or written to its log.
  const carried = new URLSearchParams(location.hash.slice(1)).get("token");
  if (carried) { localStorage.setItem("triptych token", carried); history.replaceState(null, "", location.pathname); }
  if (localStorage.getItem("triptych token")) begin(); else signOut();
}
