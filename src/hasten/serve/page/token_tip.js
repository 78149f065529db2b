/** A small label beside the pointer: who guessed the token under it. The list "Who guessed what" says the same without a pointer. */

import { about } from "./drafters.js";

/** @param {HTMLElement} tip @param {(token: Element) => string} ownerOf */
export function installTokenTip(tip, ownerOf) {
  document.addEventListener("pointerover", (event) => {
    const token = event.target.closest?.(".token[data-by]");
    if (!token || document.documentElement.dataset.marks === "off") {
      tip.hidden = true;
      return;
    }
    const name = ownerOf(token);
    tip.textContent = `${name} · ${about(name)}`;
    tip.hidden = false;
    const box = token.getClientRects()[0] ?? token.getBoundingClientRect();
    const left = Math.max(8, Math.min(box.left, window.innerWidth - tip.offsetWidth - 8));
    tip.style.transform = `translate(${Math.round(left)}px, ${Math.round(box.bottom + 6)}px)`;
  });
  document.addEventListener("scroll", () => (tip.hidden = true), { capture: true, passive: true });
}
