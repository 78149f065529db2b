// Before anything is drawn, so that a chosen theme does not flash. Classic script on purpose: modules run too late.
try {
  const { theme, marks } = JSON.parse(localStorage.getItem("hasten.settings")) ?? {};
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  if (marks === false) document.documentElement.dataset.marks = "off";
} catch {
  // No storage, or nothing that can be read: the system's theme.
}
