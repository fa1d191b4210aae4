// Before the first paint, so that the page does not flash in the other theme.
(() => {
  let kept = null;
  try {
    kept = localStorage.getItem("ingot-theme");
  } catch {
    // storage may be forbidden: the system's theme it is
  }
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
  document.documentElement.classList.add("js");
})();
