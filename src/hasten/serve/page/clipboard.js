/** Copying, and what to do where the browser forbids it. */

/** @param {import("./toast.js").Toast} toast @param {string} text @param {string} done what is told then */
export async function copyText(toast, text, done) {
  try {
    await navigator.clipboard.writeText(text);
    toast.say(done);
  } catch {
    const said = copiedBySelection(text) ? done : "This browser does not let the page copy (it wants HTTPS or localhost); select the text instead.";
    toast.say(said);
  }
}

/** Browsers have no clipboard for pages without HTTPS, on a network of one's own; a selection can be copied everywhere. Whether it was. */
function copiedBySelection(text) {
  const focused = document.activeElement;
  const field = document.createElement("textarea");
  field.value = text;
  field.className = "off-screen";
  field.setAttribute("aria-hidden", "true");
  (focused?.closest("dialog") ?? document.body).append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  focused?.focus?.();
  return done;
}

/** The buttons of code blocks, within `box`. */
export function installCodeCopy(toast, box) {
  box.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy]");
    if (button) copyText(toast, button.closest(".code").querySelector("code").textContent, "Code copied.");
  });
}
