"use strict";
// Keys, and what htmx leaves to us: telling the annotator that a label did not get through.

const isWriting = (element) =>
  element.closest("textarea, select, input:not([type=radio]):not([type=checkbox])") !== null;

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || isWriting(event.target)) return;
  const target = document.querySelector(`[data-key="${CSS.escape(event.key.toLowerCase())}"]`);
  if (target === null || target.disabled || target.closest("[hidden]")) return;
  event.preventDefault();
  target.click();
  const field = target.parentElement.open && target.parentElement.querySelector("textarea, input[name=reason]");
  if (target.tagName === "SUMMARY" && field) field.focus();
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") event.target.blur();
});

document.addEventListener("click", (event) => {
  const copy = event.target.closest("[data-copy]");
  if (copy === null) return;
  const edited = document.getElementById("edited");
  edited.value = document.getElementById(copy.dataset.copy).textContent.trim();
  edited.focus();
});

// A form that takes long is sent once, and its button says what is waited for.
document.addEventListener("submit", (event) => {
  const form = event.target.closest("form[data-waiting]");
  if (form === null) return;
  if (form.hasAttribute("aria-busy")) { event.preventDefault(); return; }
  form.setAttribute("aria-busy", "true");
  form.querySelector("button.primary").textContent = form.dataset.waiting;
});

const notice = (text) => {
  const line = document.createElement("p");
  line.className = "notice";
  line.textContent = text;
  document.getElementById("notice").replaceChildren(line);
};

const notSaved = () =>
  notice("Not saved: the service does not answer. Your page is as it was; choose again in a moment. Nothing is counted twice.");

document.addEventListener("htmx:sendError", notSaved);
document.addEventListener("htmx:timeout", notSaved);
document.addEventListener("htmx:beforeSwap", (event) => {
  if (event.detail.xhr.status < 500) return;
  event.detail.shouldSwap = false;
  notSaved();
});
document.addEventListener("htmx:afterSwap", (event) => {
  if (event.target.id === "notice") {
    // a first label that was kept without the page's knowledge can be taken back now
    if (event.detail.xhr.status === 409) document.getElementById("undo")?.removeAttribute("hidden");
    return;
  }
  document.getElementById("notice").replaceChildren();
  window.scrollTo(0, 0);
  const heading = document.querySelector("#work h1");
  if (heading) { heading.tabIndex = -1; heading.focus({ preventScroll: true }); }
});
