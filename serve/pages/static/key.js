"use strict";
// The key to this server, stored until this tab is closed. `fetchWithKey` is `reach` with the key; if the server refuses
// it, one dialog asks for another key on behalf of all waiting requests. With the option `again`, for requests that a page
// repeats by itself, nobody is asked who has declined once.
let keyAsked = null, keyDeclined = false;

function askForKey(reason) {
  keyAsked ??= new Promise((resolve) => {
    const dialog = element("dialog", "key"), form = element("form"), label = element("label", "", "Your key"), input = element("input");
    const buttons = element("div", "buttons"), enter = element("button", "main", "Go on"), leave = element("button", "", "Cancel");
    // Password managers expect a user name.
    const owner = Object.assign(element("input"), { type: "text", value: "key", autocomplete: "username", hidden: true });
    dialog.setAttribute("aria-labelledby", "key-title");
    form.method = "dialog";
    Object.assign(input, { type: "password", autocomplete: "off", spellcheck: false, id: "key" });
    enter.value = "enter";
    leave.value = "cancel";
    buttons.append(enter, leave);
    label.append(input);
    form.append(Object.assign(element("h2", "", "A key, please"), { id: "key-title" }), element("p", "", reason), owner, label, buttons);
    dialog.append(form);
    document.body.append(dialog);
    dialog.addEventListener("close", () => {
      const given = dialog.returnValue === "enter" ? input.value.trim() : "";
      if (given) sessionStorage.setItem("triptych key", given);
      keyDeclined = !given;
      dialog.remove();
      keyAsked = null;
      resolve(given !== "");
    });
    dialog.showModal();
  });
  return keyAsked;
}

async function fetchWithKey(path, { again = false, ...options } = {}) {
  for (;;) {
    const key = sessionStorage.getItem("triptych key");
    const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    const response = await reach(path, { ...options, headers });
    const error = [401, 403].includes(response.status) ? (await response.clone().json().catch(() => ({}))).error : null;
    if (!["AuthenticationError", "PermissionError"].includes(error?.type)) return response;
    if (again && keyDeclined) return response;
    // The key may have been replaced for another request while this one was on its way.
    if (sessionStorage.getItem("triptych key") === key && !(await askForKey(key ? error.message : "This server asks for a key."))) return response;
  }
}
