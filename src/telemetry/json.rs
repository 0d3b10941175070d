//! An event as one line of JSON: `timestamp`, `level`, the event's own fields, `target`, and the request it belongs to as
//! `span`.
//!
//! The subscriber's own JSON format reads a span's fields back from text for every line and took a tenth of all the time
//! a refresh costs; this one copies them.

use std::fmt::{self, Debug, Write};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

pub(super) struct JsonLine;

impl<S> FormatEvent<S, JsonFields> for JsonLine
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut line: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        line.write_str(r#"{"timestamp":""#)?;
        SystemTime.format_time(&mut line)?;
        write!(line, r#"","level":"{}""#, metadata.level())?;
        let mut members = Members { line: &mut line, outcome: Ok(()) };
        event.record(&mut members);
        members.outcome?;
        write!(line, r#","target":"{}""#, metadata.target())?;
        if let Some(span) = context.lookup_current() {
            write!(line, r#","span":{{"name":"{}""#, span.name())?;
            if let Some(fields) = span.extensions().get::<FormattedFields<JsonFields>>()
                && let Some(members) = fields.fields.strip_prefix('{').and_then(|object| object.strip_suffix('}'))
                && !members.is_empty()
            {
                write!(line, ",{members}")?;
            }
            line.write_char('}')?;
        }
        line.write_str("}\n")
    }
}

/// Writes an event's fields, each with a comma in front.
struct Members<'line, 'writer> {
    line: &'line mut Writer<'writer>,
    outcome: fmt::Result,
}

impl Members<'_, '_> {
    fn member(&mut self, field: &Field, value: impl FnOnce(&mut Writer<'_>) -> fmt::Result) {
        let written = write!(self.line, r#","{}":"#, field.name()).and_then(|()| value(self.line));
        self.outcome = self.outcome.and(written);
    }

    fn text(&mut self, field: &Field, text: fmt::Arguments<'_>) {
        self.member(field, |line| {
            line.write_char('"')?;
            Escaped(line).write_fmt(text)?;
            line.write_char('"')
        });
    }
}

impl Visit for Members<'_, '_> {
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.member(field, |line| write!(line, "{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.member(field, |line| write!(line, "{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.member(field, |line| write!(line, "{value}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.text(field, format_args!("{value:?}"));
    }
}

/// Takes text and writes it as the inside of a JSON string (RFC 8259 §7).
struct Escaped<'line, 'writer>(&'line mut Writer<'writer>);

impl Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.bytes().position(|byte| byte < b' ' || byte == b'"' || byte == b'\\') {
            self.0.write_str(&rest[..at])?;
            write!(self.0, "\\u{:04x}", rest.as_bytes()[at])?;
            rest = &rest[at + 1..];
        }
        self.0.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use serde_json::{Value, json};
    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Log {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    /// What `events` log, without the times.
    fn logged(events: impl FnOnce()) -> Vec<Value> {
        let log = Log::default();
        let subscriber = tracing_subscriber::fmt().fmt_fields(JsonFields::new()).event_format(JsonLine);
        tracing::subscriber::with_default(subscriber.with_writer(log.clone()).finish(), events);
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let lines = text.lines().map(|line| {
            let mut line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            let time = line.as_object_mut().unwrap().remove("timestamp").unwrap();
            chrono::DateTime::parse_from_rfc3339(time.as_str().unwrap()).unwrap();
            line
        });
        lines.collect()
    }

    #[test]
    fn an_event_is_an_object_of_its_fields() {
        let lines = logged(|| {
            let error = io::Error::other("it \"failed\"");
            let error = &error as &dyn std::error::Error;
            tracing::warn!(audit = true, user.id = 7_i64, count = 3_u64, network = %"2001:db8::/64", error, "words");
        });
        assert_eq!(
            lines,
            [json!({
                "level": "WARN", "message": "words", "audit": true, "user.id": 7, "count": 3,
                "network": "2001:db8::/64", "error": "it \"failed\"", "target": module_path!(),
            })]
        );
    }

    #[test]
    fn the_span_of_an_event_stands_in_it() {
        let lines = logged(|| {
            tracing::info_span!("request", id = "a \"b\"").in_scope(|| tracing::info!("inside"));
            tracing::info_span!("bare").in_scope(|| tracing::info!("inside"));
            tracing::info!("outside");
        });
        let spans: Vec<_> = lines.iter().map(|line| line["span"].clone()).collect();
        assert_eq!(spans, [json!({"name": "request", "id": "a \"b\""}), json!({"name": "bare"}), Value::Null]);
    }

    #[test]
    fn no_text_breaks_out_of_its_line() {
        let all: String = (0..=0x2ff_u32).chain([0x2028, 0x1f600]).filter_map(char::from_u32).collect();
        let lines = logged(|| tracing::info!(text = all.as_str(), shown = %all, "{all}"));
        assert_eq!(lines.len(), 1);
        for name in ["text", "shown", "message"] {
            assert_eq!(lines[0][name], all.as_str(), "{name}");
        }
    }
}
