// The picture and what can be done with it; the server writes the content, buttons carry an action.
// A PNG that is dropped anywhere on the page goes to the upload button, which reads its settings.

const ACTIONS = ["reuse", "again", "pick"];

element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-action]");
  if (button && ACTIONS.includes(button.dataset.action)) {
    trigger(button.dataset.action, { name: button.dataset.name || "" });
  }
});

const isFile = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
// Other tabs take files too: theirs are not ours.
const isOurs = (event) => isFile(event) && element.offsetParent !== null;

document.addEventListener("dragover", (event) => {
  if (!isOurs(event)) return;
  event.preventDefault();
  element.classList.add("drop");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) element.classList.remove("drop");
});
document.addEventListener("drop", (event) => {
  element.classList.remove("drop");
  if (!isOurs(event)) return;
  event.preventDefault();
  const input = document.querySelector('input[type=file][data-testid^="Settings from a PNG"]');
  if (!input || !event.dataTransfer.files.length) return;
  input.files = event.dataTransfer.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
});
