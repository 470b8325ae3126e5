// The picture and what can be done with it; the server writes the content, buttons carry an action.

element.addEventListener("click", (event) => {
  if (event.target.closest("[data-action=reuse]")) trigger("reuse", {});
});
