// A file to download: followed at once, and a link for those whose browser does not.
// `props.value` is {source, name, size, remark} or {}.

const root = element.querySelector(".delivery");

function draw() {
  const value = props.value || {};
  root.replaceChildren();
  if (!value.source) return;
  const line = make("div", "notice");
  line.setAttribute("role", "status");
  const link = make("a", "link", `${value.name} (${value.size})`);
  link.href = value.source;
  link.download = value.name;
  line.append(make("span", "", "Ready:"), link);
  if (value.remark) line.append(make("span", "quiet", value.remark));
  root.append(line);
  link.click();
}

watch("value", draw);
