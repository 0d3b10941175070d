//! The report of `scripts/bench`: a table for the terminal, and a page with a chart of the ratios and what a newcomer wants
//! to know.
//!
//! The results are lines of fields between tabs. `scenario NAME TITLE UNIT BOUND` says what is compared: `TITLE` is the
//! scenario and, after ` / `, what it is compared with; `BOUND` is `>1.5` for a ratio that is to reach 1.5, `<1.2` for one
//! that is to stay under 1.2, and empty where nothing is asked.
//! `round NAME SIDE VALUE P50 P99` is a measurement, where `SIDE` is `service` or `limit`; `memory NAME MIB` the peak of
//! the service in that scenario; `note TEXT` goes below the table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::Outcome;

#[derive(Default)]
struct Scenario {
    title: String,
    unit: String,
    bound: String,
    service: Side,
    limit: Side,
    memory: Option<f64>,
}

#[derive(Default)]
struct Side {
    values: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
}

impl Scenario {
    /// Of each round's own two figures.
    fn ratios(&self) -> Vec<f64> {
        self.service.values.iter().zip(&self.limit.values).map(|(service, limit)| service / limit).collect()
    }

    /// The ratio, or the figure itself where there is nothing to compare it with.
    fn headline(&self) -> Option<f64> {
        median(&self.ratios()).or_else(|| median(&self.service.values))
    }

    fn bound(&self) -> Option<(char, f64)> {
        let mut characters = self.bound.chars();
        Some((characters.next()?, characters.as_str().parse().ok()?))
    }

    /// The scenario, and what it is compared with.
    fn names(&self) -> (&str, &str) {
        self.title.split_once(" / ").unwrap_or((&self.title, ""))
    }

    /// Times are compared, not rates.
    fn less_is_better(&self) -> bool {
        self.unit == "ms"
    }

    fn wanted(&self) -> String {
        self.bound.replace('>', "≥ ").replace('<', "< ")
    }

    fn holds(&self) -> Option<bool> {
        let (headline, (kind, bound)) = (self.headline()?, self.bound()?);
        Some(if kind == '<' { headline < bound } else { headline >= bound })
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    Some(if sorted.len().is_multiple_of(2) { f64::midpoint(sorted[middle - 1], upper) } else { upper })
}

pub(crate) fn write(results: &Path, page: &Path, chart: &Path) -> Outcome<()> {
    let (scenarios, notes) = read(&fs::read_to_string(results)?)?;
    let picture = svg(&scenarios)?;
    fs::write(page, html(&scenarios, &notes, &picture)?)?;
    fs::write(chart, picture)?;
    let mut report = table(&scenarios)?;
    for note in notes {
        write!(report, "\n- {note}")?;
    }
    show(&report);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "this is what the program is for")]
fn show(report: &str) {
    println!("{report}");
}

fn read(results: &str) -> Outcome<(Vec<Scenario>, Vec<String>)> {
    let (mut scenarios, mut notes) = (Vec::<Scenario>::new(), Vec::new());
    let mut places = BTreeMap::new();
    for line in results.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let scenario = |places: &BTreeMap<String, usize>, name: &str| {
            places.get(name).copied().ok_or(format!("unknown scenario in: {line}"))
        };
        match fields[..] {
            ["scenario", name, title, unit, bound] => {
                places.insert(name.to_owned(), scenarios.len());
                let [title, unit, bound] = [title, unit, bound].map(str::to_owned);
                scenarios.push(Scenario { title, unit, bound, ..Scenario::default() });
            }
            ["round", name, side, value, p50, p99] => {
                let scenario = &mut scenarios[scenario(&places, name)?];
                let side = if side == "limit" { &mut scenario.limit } else { &mut scenario.service };
                side.values.push(value.parse()?);
                side.p50.extend(p50.parse::<f64>());
                side.p99.extend(p99.parse::<f64>());
            }
            ["memory", name, mib] => scenarios[scenario(&places, name)?].memory = Some(mib.parse()?),
            ["note", note] => notes.push(note.to_owned()),
            _ => return Err(format!("cannot read the result: {line}").into()),
        }
    }
    Ok((scenarios, notes))
}

fn number(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(value) if value >= 1000.0 => {
            format!("{:.0},{:03.0}", (value.round() / 1000.0).floor(), value.round() % 1000.0)
        }
        Some(value) if value >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

fn milliseconds(microseconds: &[f64]) -> String {
    median(microseconds).map_or("–".to_owned(), |median| format!("{:.2}", median / 1000.0))
}

/// Medians of the rounds.
fn table(scenarios: &[Scenario]) -> Outcome<String> {
    let mut rows = vec![
        ["scenario", "ratio", "wanted", "", "service", "limit", "unit", "p50 ms", "p99 ms", "p99/p50", "peak MiB"]
            .map(str::to_owned),
    ];
    for scenario in scenarios {
        let (p50, p99) = (median(&scenario.service.p50), median(&scenario.service.p99));
        rows.push([
            scenario.title.clone(),
            number(median(&scenario.ratios())),
            scenario.wanted(),
            scenario.holds().map_or("", |holds| if holds { "yes" } else { "NO" }).to_owned(),
            number(median(&scenario.service.values)),
            number(median(&scenario.limit.values)),
            scenario.unit.clone(),
            milliseconds(&scenario.service.p50),
            milliseconds(&scenario.service.p99),
            number(p50.zip(p99).map(|(p50, p99)| p99 / p50)),
            number(scenario.memory),
        ]);
    }
    let width = |column: usize| rows.iter().map(|row: &[String; 11]| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..11).map(width).collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            write!(text, "| {cell:<width$} ")?;
        }
        writeln!(text, "|")?;
        if index == 0 {
            for width in &widths {
                write!(text, "| {:-<width$} ", "", width = width.max(&3))?;
            }
            writeln!(text, "|")?;
        }
    }
    Ok(text)
}

/// What the chart stands in.
const INTRODUCTION: &str = "Each bar compares the service with the most that this machine can do at the same task, measured \
    in turns. At 1 it does as much as that limit. Refresh goes beyond it, because many refreshes share one commit. A bar is \
    red where the service does less than is wanted of it.";

fn html(scenarios: &[Scenario], notes: &[String], chart: &str) -> Outcome<String> {
    let mut rows = String::new();
    for scenario in scenarios {
        let (what, limit) = scenario.names();
        let with_unit = |side: &Side| match median(&side.values) {
            None => String::new(),
            value => format!("{} {}", number(value), scenario.unit),
        };
        let verdict = scenario.holds().map_or("", |holds| if holds { "yes" } else { "no" });
        let cells = [
            what,
            &with_unit(&scenario.service),
            &if limit.is_empty() { String::new() } else { format!("{limit}: {}", with_unit(&scenario.limit)) },
            &median(&scenario.ratios()).map_or(String::new(), |ratio| format!("{ratio:.2}")),
            &scenario.wanted(),
            verdict,
            &milliseconds(&scenario.service.p50),
            &milliseconds(&scenario.service.p99),
            &number(scenario.memory),
        ];
        write!(rows, "<tr class=\"{verdict}\">")?;
        for cell in cells {
            write!(rows, "<td>{}", escape(cell.trim()))?;
        }
        rows.push('\n');
    }
    let mut list = String::new();
    for note in notes {
        writeln!(list, "<li>{}", escape(note))?;
    }
    Ok(format!(
        r#"<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>auth: what it can do on this machine</title>
<style>
body {{ max-width: 68rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 sans-serif; color: #1b1b1b }}
svg {{ width: 100%; height: auto }}
table {{ border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums }}
th, td {{ padding: 5px 9px; text-align: right; vertical-align: baseline; border-bottom: 1px solid #ddd }}
th {{ vertical-align: bottom }}
td {{ white-space: nowrap }}
th:nth-child(1), td:nth-child(1), th:nth-child(3), td:nth-child(3) {{ text-align: left }}
.no td:nth-child(4), .no td:nth-child(6) {{ color: #b3261e; font-weight: bold }}
li {{ color: #555; font-size: 14px }}
</style>
<h1>What auth can do on this machine</h1>
<p>{INTRODUCTION}
{chart}
<table>
<thead><tr><th>What is measured<th>auth<th>compared with<th>ratio<th>wanted<th>reached<th>half<br>within ms<th>99 %<br>within ms<th>peak<br>MiB
<tbody>
{rows}</table>
<ul>
{list}</ul>
"#
    ))
}

const WIDTH: f64 = 940.0;
const LEFT: f64 = 390.0;
const ROW: f64 = 34.0;

/// Bars of the ratios, with the figure of the service, a tick for what is wanted and a dot for each round: rates, then times.
fn svg(scenarios: &[Scenario]) -> Outcome<String> {
    let compared = |less| {
        let of_kind = move |it: &&Scenario| it.less_is_better() == less && !it.ratios().is_empty();
        scenarios.iter().filter(of_kind).collect::<Vec<_>>()
    };
    let groups = [("Rate: more is better", compared(false)), ("Time: less is better", compared(true))];
    let all = groups.iter().flat_map(|(_, group)| group);
    let values = all.flat_map(|it| it.ratios().into_iter().chain(it.bound().map(|(_, bound)| bound)));
    let largest = values.fold(1.0, f64::max) * 1.05;
    let x = |ratio: f64| LEFT + ratio / largest * (WIDTH - LEFT - 130.0);
    let (mut rows, mut y) = (String::new(), 66.0);
    for (heading, group) in groups.iter().filter(|(_, group)| !group.is_empty()) {
        writeln!(rows, r#"<text x="0" y="{}" font-weight="bold">{heading}</text>"#, y + 16.0)?;
        y += 26.0;
        for scenario in group {
            let Some(ratio) = scenario.headline() else { continue };
            bar(&mut rows, scenario, ratio, y, x)?;
            y += ROW;
        }
    }
    let limit = x(1.0);
    Ok(format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="14">
<rect width="100%" height="100%" fill="#fff"/>
<text y="18" font-size="17" font-weight="bold">auth beside the limits of one machine</text>
<text x="{limit:.1}" y="46" text-anchor="middle">1 = as much as the limit</text>
<g font-size="12" fill="#555"><path d="M{WIDTH} 38m-150 -4v14" stroke="#e07b00" stroke-width="3"/>
<text x="{wanted}" y="46">wanted</text><circle cx="{dot}" cy="42" r="3" fill="#fff" stroke="#333"/>
<text x="{round}" y="46">a round</text></g>
<path d="M{limit:.1} 52V{y}" stroke="#777" stroke-dasharray="4"/>
{rows}</svg>
"##,
        height = y + 6.0,
        wanted = WIDTH - 142.0,
        dot = WIDTH - 76.0,
        round = WIDTH - 68.0,
    ))
}

fn bar(rows: &mut String, scenario: &Scenario, ratio: f64, y: f64, x: impl Fn(f64) -> f64) -> Outcome<()> {
    let (what, limit) = scenario.names();
    let colour = if scenario.holds() == Some(false) { "#b3261e" } else { "#2a6f97" };
    let (title, subtitle, end) = (y + 10.0, y + 24.0, LEFT - 12.0);
    writeln!(rows, r#"<text x="{end}" y="{title}" text-anchor="end">{}</text>"#, escape(what))?;
    writeln!(
        rows,
        r##"<text x="{end}" y="{subtitle}" text-anchor="end" font-size="11" fill="#555">against {}</text>"##,
        escape(limit)
    )?;
    let width = x(ratio) - LEFT;
    writeln!(rows, r#"<rect x="{LEFT}" y="{}" width="{width:.1}" height="20" fill="{colour}"/>"#, y + 2.0)?;
    let middle = y + 12.0;
    for round in scenario.ratios() {
        writeln!(rows, r##"<circle cx="{:.1}" cy="{middle}" r="3" fill="#fff" stroke="#333"/>"##, x(round))?;
    }
    let mut rightmost = scenario.ratios().into_iter().fold(ratio, f64::max);
    if let Some((_, bound)) = scenario.bound() {
        writeln!(rows, r##"<path d="M{:.1} {}v26" stroke="#e07b00" stroke-width="3"/>"##, x(bound), y - 1.0)?;
        rightmost = rightmost.max(bound);
    }
    let (x, baseline, figure) = (x(rightmost) + 9.0, y + 17.0, number(median(&scenario.service.values)));
    writeln!(
        rows,
        r##"<text x="{x:.1}" y="{baseline}" stroke="#fff" stroke-width="4" paint-order="stroke">{ratio:.2} <tspan font-size="12" fill="#555">({figure} {})</tspan></text>"##,
        scenario.unit
    )?;
    Ok(())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
