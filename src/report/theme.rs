//! The colours of the page in both themes, and the style sheet made from them.
//!
//! Series use the palette of Okabe and Ito ("Color Universal Design", 2008), which readers with the common colour
//! vision deficiencies can tell apart; each theme takes the members that stand out from its background. Series differ
//! in their marker too. Text is never drawn in a series colour.

/// A colour as (red, green, blue).
type Rgb = (u8, u8, u8);

/// One named colour: the CSS variable, its value on a light page, its value on a dark page.
struct Colour(&'static str, Rgb, Rgb);

/// How many series colours there are; a seventh series has the first colour and another marker.
pub(super) const SERIES: usize = 6;

/// The strongest tint of a confusion matrix cell, as an opacity: (correct, wrong). Above it the counts get hard to read.
pub(super) const TINT: (f64, f64) = (0.85, 0.65);

const COLOURS: [Colour; 16] = [
    Colour("paper", (255, 255, 255), (20, 24, 29)),
    Colour("panel", (245, 247, 249), (29, 35, 42)),
    Colour("ink", (27, 31, 36), (232, 235, 239)),
    Colour("muted", (85, 96, 107), (163, 173, 184)),
    Colour("rule", (213, 218, 224), (54, 63, 73)),
    Colour("link", (0, 90, 143), (124, 196, 240)),
    Colour("hit", (86, 180, 233), (0, 114, 178)),
    Colour("miss", (230, 159, 0), (213, 94, 0)),
    Colour("good", (0, 158, 115), (0, 158, 115)),
    Colour("bad", (213, 94, 0), (213, 94, 0)),
    Colour("series-0", (0, 114, 178), (86, 180, 233)),
    Colour("series-1", (213, 94, 0), (230, 159, 0)),
    Colour("series-2", (0, 158, 115), (0, 158, 115)),
    Colour("series-3", (204, 121, 167), (204, 121, 167)),
    Colour("series-4", (0, 0, 0), (240, 228, 66)),
    Colour("series-5", (230, 159, 0), (213, 94, 0)),
];

/// The style sheet of a report.
pub(super) fn style_sheet() -> String {
    let light = variables(|colour| colour.1);
    let dark = variables(|colour| colour.2);
    let series: String = (0..SERIES).map(|i| format!(".s{i} {{ color: var(--series-{i}); }}\n")).collect();
    format!(
        ":root {{ color-scheme: light dark; {light} }}\n\
         @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n\
         @media print {{ :root {{ color-scheme: light; {light} }} }}\n{RULES}{series}"
    )
}

fn variables(pick: impl Fn(&Colour) -> Rgb) -> String {
    let one = |colour: &Colour| {
        let (r, g, b) = pick(colour);
        format!("--{}: #{r:02x}{g:02x}{b:02x};", colour.0)
    };
    COLOURS.iter().map(one).collect::<Vec<_>>().join(" ")
}

const RULES: &str = r#"
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 860px; margin: 0 auto; padding: 48px 24px 64px; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -0.015em; margin: 0; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: 56px 0 12px; padding-top: 20px; border-top: 1px solid var(--rule); }
h2 .number { color: var(--muted); font-weight: 400; margin-right: 0.5em; }
p { margin: 0 0 14px; max-width: 46em; overflow-wrap: anywhere; }
a { color: var(--link); text-underline-offset: 0.15em; }
.subtitle { color: var(--muted); margin: 8px 0 0; font-size: 1.05rem; }
.headlines { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 28px 0 0; }
.headlines div { display: flex; flex-direction: column-reverse; justify-content: flex-end; background: var(--panel);
  border: 1px solid var(--rule); border-radius: 8px; padding: 14px 16px; }
.headlines dd { margin: 0; font-size: 1.5rem; font-weight: 650; line-height: 1.25; font-variant-numeric: tabular-nums; }
.headlines dt { color: var(--muted); font-size: 0.85rem; line-height: 1.35; }
nav { margin: 28px 0 0; }
nav h2 { font-size: 0.95rem; margin: 0 0 6px; padding: 0; border: 0; }
nav ol { margin: 0; padding-left: 1.4em; columns: 2; column-gap: 32px; }
nav li { break-inside: avoid; padding-left: 0.2em; }
nav li::marker { color: var(--muted); }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
.scroll { overflow-x: auto; margin: 20px 0 24px; }
table { border-collapse: collapse; font-size: 0.92rem; line-height: 1.4; min-width: 50%; }
caption { caption-side: top; text-align: left; padding-bottom: 8px; }
caption, figcaption { color: var(--muted); font-size: 0.9rem; line-height: 1.45; }
caption b, figcaption b { color: var(--ink); font-weight: 600; }
th, td { padding: 6px 16px 6px 0; text-align: left; vertical-align: baseline; }
th:last-child, td:last-child { padding-right: 4px; }
thead th { font-weight: 600; border-top: 2px solid var(--ink); border-bottom: 1px solid var(--ink); vertical-align: bottom; }
tbody th { font-weight: 400; min-width: 8.5em; }
tbody tr + tr > * { border-top: 1px solid var(--rule); }
tbody tr:last-child > * { border-bottom: 2px solid var(--ink); }
th.number, td.number { text-align: right; padding-left: 12px; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: 20px 0 28px; }
.drawings { display: flex; flex-wrap: wrap; gap: 16px; }
.drawings svg { flex: 1 1 320px; min-width: 0; height: auto; background: var(--paper);
  border: 1px solid var(--rule); border-radius: 8px; }
figcaption { margin-top: 8px; max-width: 52em; }
footer { margin-top: 56px; padding-top: 16px; border-top: 1px solid var(--rule); color: var(--muted); font-size: 0.85rem; }
svg { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; font-size: 12px; }
svg text { fill: var(--muted); font-variant-numeric: tabular-nums; }
svg .strong { fill: var(--ink); }
svg .heading { fill: var(--ink); font-size: 14px; font-weight: 600; }
svg .halo { paint-order: stroke; stroke: var(--paper); stroke-width: 3px; stroke-linejoin: round; }
svg .end { text-anchor: end; }
svg .middle { text-anchor: middle; }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .base { stroke: var(--muted); stroke-width: 1; }
svg .line { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg .dashed { stroke-dasharray: 6 5; }
svg .area { fill: currentColor; fill-opacity: 0.16; stroke: none; }
svg .mark { fill: currentColor; stroke: var(--paper); stroke-width: 1; }
svg .bubble { fill: currentColor; fill-opacity: 0.3; stroke: currentColor; stroke-width: 1.5; }
svg .bar { fill: currentColor; }
svg .cell { fill: var(--panel); }
svg .hit { fill: var(--hit); }
svg .miss { fill: var(--miss); }
svg .good { stroke: var(--good); }
svg .bad { stroke: var(--bad); }
svg .sign { fill: none; stroke-width: 2.2; stroke-linecap: round; stroke-linejoin: round; }
svg .frame { fill: none; stroke-width: 2; }
svg .bad.frame { stroke-width: 3; }
svg image { image-rendering: pixelated; }
@media (max-width: 600px) { nav ol { columns: 1; } main { padding: 28px 16px 40px; } }
@media print {
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  h2 { break-after: avoid; margin-top: 28px; }
  figure, table, .headlines { break-inside: avoid; }
  .scroll { overflow: visible; }
  table { font-size: 8.5pt; }
  th, td { padding-right: 10px; }
  tbody th { min-width: 0; }
  a { color: inherit; text-decoration: none; }
  .drawings svg, .headlines div { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"#;

#[cfg(test)]
mod tests {
    use super::*;

    /// Relative luminance, WCAG 2.2.
    fn luminance((r, g, b): Rgb) -> f64 {
        let linear = |channel: u8| match f64::from(channel) / 255.0 {
            c if c <= 0.04045 => c / 12.92,
            c => ((c + 0.055) / 1.055).powf(2.4),
        };
        0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b)
    }

    /// Contrast ratio, WCAG 2.2.
    fn contrast(a: Rgb, b: Rgb) -> f64 {
        let (a, b) = (luminance(a), luminance(b));
        (a.max(b) + 0.05) / (a.min(b) + 0.05)
    }

    fn blend(over: Rgb, under: Rgb, opacity: f64) -> Rgb {
        let mix = |o: u8, u: u8| (f64::from(o) * opacity + f64::from(u) * (1.0 - opacity)).round() as u8;
        (mix(over.0, under.0), mix(over.1, under.1), mix(over.2, under.2))
    }

    #[test]
    fn text_has_contrast_aa_in_both_themes() {
        assert!((contrast((255, 255, 255), (0, 0, 0)) - 21.0).abs() < 1e-9);
        assert!((contrast((255, 255, 255), (0x76, 0x76, 0x76)) - 4.54).abs() < 0.005, "the well-known AA grey");
        for (theme, pick) in [("light", (|c| c.1) as fn(&Colour) -> Rgb), ("dark", |c| c.2)] {
            let colour = |name: &str| pick(COLOURS.iter().find(|c| c.0 == name).expect("a colour of the table"));
            for ground in ["paper", "panel"] {
                for text in ["ink", "muted", "link"] {
                    let ratio = contrast(colour(text), colour(ground));
                    assert!(ratio >= 4.5, "{theme}: {text} on {ground} has {ratio:.2}");
                }
            }
            for (tint, strongest) in [("hit", TINT.0), ("miss", TINT.1)] {
                for share in 0..=10 {
                    let cell = blend(colour(tint), colour("panel"), strongest * f64::from(share) / 10.0);
                    let ratio = contrast(colour("ink"), cell);
                    assert!(ratio >= 4.5, "{theme}: ink on {share}/10 of {tint} has {ratio:.2}");
                }
            }
        }
    }

    #[test]
    fn the_sheet_asks_for_nothing_from_outside() {
        let sheet = style_sheet();
        assert!(!sheet.contains("url(") && !sheet.contains("@import"));
        assert_eq!(sheet.matches('{').count(), sheet.matches('}').count());
        for used in sheet.split("var(--").skip(1).filter_map(|rest| rest.split(')').next()) {
            assert!(COLOURS.iter().any(|colour| colour.0 == used), "{used} is used and has no value");
        }
    }
}
