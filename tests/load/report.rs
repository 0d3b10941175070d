//! The report of `scripts/bench`: a table, and a chart of the ratios.
//!
//! The results are lines of fields between tabs. `scenario NAME TITLE UNIT BOUND` says what is compared: `BOUND` is `>1.5`
//! for a ratio that is to reach 1.5, `<1.2` for one that is to stay under 1.2, and empty where nothing is asked.
//! `round NAME SIDE VALUE P50 P99` is a measurement, where `SIDE` is `service` or `limit`; `memory NAME MIB` the peak of
//! the service in that scenario; `note TEXT` goes below the table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::Outcome;

#[derive(Default)]
struct Scenario {
    name: String,
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

pub(crate) fn write(results: &Path, markdown: &Path, chart: &Path) -> Outcome<()> {
    let (scenarios, notes) = read(&fs::read_to_string(results)?)?;
    let mut report = String::from("# Bench\n\n");
    report.push_str(&table(&scenarios)?);
    writeln!(report)?;
    for note in notes {
        writeln!(report, "- {note}")?;
    }
    if let Some(file) = chart.file_name().and_then(|name| name.to_str()) {
        writeln!(report, "\n![Ratios]({file})")?;
    }
    fs::write(markdown, &report)?;
    fs::write(chart, svg(&scenarios)?)?;
    show(&report);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "this is what the program is for")]
fn show(report: &str) {
    print!("{report}");
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
                let [name, title, unit, bound] = [name, title, unit, bound].map(str::to_owned);
                scenarios.push(Scenario { name, title, unit, bound, ..Scenario::default() });
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
        Some(value) if value >= 1000.0 => format!("{value:.0}"),
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
            scenario.bound.replace('>', "≥ ").replace('<', "< "),
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

const ROW: f64 = 30.0;
const LEFT: f64 = 330.0;
const WIDTH: f64 = 900.0;

/// Bars of the ratios with the bound of each as a tick, and the rounds as dots.
fn svg(scenarios: &[Scenario]) -> Outcome<String> {
    let compared: Vec<&Scenario> = scenarios.iter().filter(|scenario| !scenario.ratios().is_empty()).collect();
    let values =
        compared.iter().flat_map(|scenario| scenario.ratios().into_iter().chain(scenario.bound().map(|b| b.1)));
    let largest = values.fold(1.0, f64::max) * 1.05;
    let x = |value: f64| LEFT + value / largest * (WIDTH - LEFT - 60.0);
    let mut rows = String::new();
    let mut y = ROW;
    for scenario in &compared {
        let Some(ratio) = scenario.headline() else { continue };
        let colour = if scenario.holds() == Some(false) { "#b3261e" } else { "#2a6f97" };
        writeln!(
            rows,
            r#"<text x="{}" y="{}" text-anchor="end">{}</text>"#,
            LEFT - 10.0,
            y + 15.0,
            escape(&scenario.title)
        )?;
        writeln!(
            rows,
            r#"<rect x="{LEFT}" y="{y}" width="{:.1}" height="20" fill="{colour}"><title>{}</title></rect>"#,
            x(ratio) - LEFT,
            escape(&scenario.name)
        )?;
        for round in scenario.ratios() {
            writeln!(rows, r##"<circle cx="{:.1}" cy="{}" r="2.5" fill="#fff" stroke="#333"/>"##, x(round), y + 10.0)?;
        }
        if let Some((_, bound)) = scenario.bound() {
            let at = x(bound);
            writeln!(rows, r##"<path d="M{at:.1} {}v26" stroke="#e09f3e" stroke-width="3"/>"##, y - 3.0)?;
        }
        writeln!(
            rows,
            r#"<text x="{:.1}" y="{}">{ratio:.2}</text>"#,
            x(ratio.max(scenario.ratios().into_iter().fold(0.0, f64::max))) + 8.0,
            y + 15.0
        )?;
        y += ROW;
    }
    Ok(format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {}" font-family="sans-serif" font-size="13">
<rect width="100%" height="100%" fill="#fff"/>
<path d="M{:.1} {ROW}V{y}" stroke="#999" stroke-dasharray="3"/>
<text x="{LEFT}" y="18">service / limit, median of the rounds; dots are rounds, the orange tick is what is wanted</text>
{rows}</svg>
"##,
        y + 10.0,
        x(1.0),
    ))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
