// The trash of one kind of thing; `props.value` is as `bin.js` says.

const root = element.querySelector(".trash");
const bin = makeBin(() => props.value || {});
root.append(bin.notice, bin.list);
watch("value", bin.draw);
bin.draw();
