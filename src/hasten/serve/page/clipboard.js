/** Copying, and what to do where the browser forbids it. */

/** @param {import("./toast.js").Toast} toast @param {string} text @param {string} done what is told then */
export async function copyText(toast, text, done) {
  try {
    await navigator.clipboard.writeText(text);
    toast.say(done);
  } catch {
    toast.say("This browser does not let the page copy (it wants HTTPS or localhost); select the text instead.");
  }
}

/** The buttons of code blocks, within `box`. */
export function installCodeCopy(toast, box) {
  box.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy]");
    if (button) copyText(toast, button.closest(".code").querySelector("code").textContent, "Code copied.");
  });
}
