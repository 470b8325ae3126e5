// What was deleted and can be brought back: a notice with Undo for what went last, and a list of all.
// `value()` gives {deleted, bin: [{ticket, title}]}. Events: `restore` {ticket}, `empty`.

function makeBin(value) {
  const notice = make("div", "notice");
  notice.setAttribute("role", "status");
  const list = make("details", "binned");

  function item(one) {
    const node = make("li");
    node.append(make("span", "", one.title),
      press("link", "Bring back", `Bring ${one.title} back`, () => trigger("restore", { ticket: one.ticket })));
    return node;
  }

  function emptier() {
    const node = press("act", "Empty the trash", "Delete for good what is in it", () => {
      // Two presses, since nothing brings it back.
      if (node.dataset.asked) trigger("empty", {});
      node.dataset.asked = "yes";
      node.textContent = "Press again to delete for good";
    });
    return node;
  }

  let told = "";

  // What was deleted may have stood far below its notice.
  function follow(ticket) {
    if (ticket && ticket !== told) notice.scrollIntoView({ block: "nearest" });
    told = ticket;
  }

  function draw() {
    const gone = value().bin || [];
    const newest = gone.find((one) => one.ticket === value().deleted);
    notice.hidden = !newest;
    fill(notice, newest, () => (newest ? [make("span", "", `“${newest.title}” was deleted.`),
      press("link", "Undo", "Bring it back", () => trigger("restore", { ticket: newest.ticket }))] : []));
    follow(newest?.ticket);
    list.hidden = !gone.length;
    fill(list, gone, () => {
      const items = make("ul");
      items.append(...gone.map(item));
      return [make("summary", "", `Trash (${gone.length})`), items, emptier()];
    });
  }

  return { notice, list, draw };
}
