/** A small label beside the pointer: who guessed the token under it. The list "Who guessed what" says the same without a pointer. */

import { about } from "./drafters.js";

const REST_MS = 350; // on one token, before the label comes: a pointer that only crosses the text asks nothing

/** @param {HTMLElement} tip @param {(token: Element) => string} ownerOf */
export function installTokenTip(tip, ownerOf) {
  let timer;
  const hide = () => {
    clearTimeout(timer);
    tip.hidden = true;
  };
  document.addEventListener("pointerover", (event) => {
    hide();
    const token = event.target.closest?.(".token[data-by]");
    if (token && document.documentElement.dataset.marks !== "off") timer = setTimeout(() => show(tip, token, ownerOf), REST_MS);
  });
  document.documentElement.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
  document.addEventListener("scroll", hide, { capture: true, passive: true });
}

function show(tip, token, ownerOf) {
  if (!token.isConnected) return; // it was drawn anew
  const name = ownerOf(token);
  tip.textContent = `${name} · ${about(name)}`;
  tip.hidden = false;
  const box = token.getClientRects()[0] ?? token.getBoundingClientRect();
  const left = Math.max(8, Math.min(box.left, window.innerWidth - tip.offsetWidth - 8));
  tip.style.transform = `translate(${Math.round(left)}px, ${Math.round(box.bottom + 6)}px)`;
}
