"""The page's style: system fonts, light and dark, tables that scroll on a phone, figures on a white card."""

DOTS_PER_INCH = 200  # of the PNG files
PIXELS_PER_INCH = 108  # of figures on the page: their 9-point letters become 13.5 pixels, near the text's size

CSS = """\
:root { --ink: #1c1e21; --faint: #5f6670; --paper: #ffffff; --line: #dfe3e8; --shade: #f5f7f9; --accent: #0b62a4;
  --shadow: rgb(0 0 0 / 0.18); }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --faint: #a0a8b3; --paper: #16181c; --line: #343a42; --shade: #1f2329; --accent: #6db3ee;
    --shadow: rgb(255 255 255 / 0.16); }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 0.75rem; padding-top: 1.25rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 0.5rem; }
p, ul { max-width: 46rem; margin: 0.6rem 0; overflow-wrap: anywhere; }
li { margin: 0.35rem 0; overflow-wrap: anywhere; }
.subtitle { color: var(--faint); margin-top: 0.35rem; }
.lead { font-size: 1.2rem; line-height: 1.5; max-width: 52rem; margin: 1.5rem 0; padding: 1rem 1.25rem;
  background: var(--shade); border-left: 4px solid var(--accent); border-radius: 0 6px 6px 0; }
.note, figcaption { font-size: 0.85rem; color: var(--faint); max-width: 52rem; margin: 0.5rem 0 0; }
.scroll { overflow-x: auto; background:  /* a shadow on the side where there is more */
  linear-gradient(to right, var(--paper) 50%, transparent) 0 / 2rem 100% no-repeat local,
  linear-gradient(to left, var(--paper) 50%, transparent) 100% / 2rem 100% no-repeat local,
  linear-gradient(to right, var(--shadow), transparent) 0 / 0.6rem 100% no-repeat scroll,
  linear-gradient(to left, var(--shadow), transparent) 100% / 0.6rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-size: 0.875rem; line-height: 1.35; font-variant-numeric: tabular-nums; }
th { font-weight: 600; vertical-align: bottom; border-bottom: 1.5px solid var(--ink); }
th, td { padding: 0.4rem 0.7rem; }
th:first-child, td:first-child { padding-left: 0.25rem; font-weight: 600; white-space: nowrap; }
td { border-bottom: 1px solid var(--line); vertical-align: top; }
.number { text-align: right; }
td.number { white-space: nowrap; }
.text { text-align: left; overflow-wrap: break-word; min-width: 6rem; max-width: 30rem; }
figure { margin: 1.5rem 0; }
img { display: block; max-width: 100%; height: auto; background: #ffffff; padding: 0.75rem;
  border: 1px solid var(--line); border-radius: 6px; }
details { margin: 1rem 0; }
details details { margin: 0.5rem 0 0.5rem 1rem; }
summary { cursor: pointer; color: var(--accent); overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  main { padding: 1.5rem 1rem 3rem; }
  .lead { font-size: 1.05rem; padding: 0.75rem 1rem; }
  th, td { padding: 0.35rem 0.5rem; }
  th:first-child, td:first-child { position: sticky; left: 0; background: var(--paper); }
  img { max-width: none; width: max(100%, calc(0.75 * var(--width))); }
  details details { margin-left: 0.25rem; }
}
@media print { details > * { display: block; } main { max-width: none; padding: 0; } }
"""
