//! Definition errors as rustc draws its own: place, line, caret, mend.

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use mcp_spec::definition::DefinitionError;

use super::clean;

/// Every error, one beneath the other, in colours that the printer strips where none are wanted.
pub(crate) fn definition_errors(errors: &[DefinitionError]) -> String {
    let renderer = Renderer::styled();
    let mut out = String::new();
    for error in errors {
        let message = clean::line(&error.message);
        let file = clean::line(&error.file);
        let source = clean::line(&error.source_line);
        let start = byte_of_column(&source, error.column);
        let width = source[start..]
            .char_indices()
            .map(|(at, character)| at + character.len_utf8())
            .find(|end| *end >= error.span.len())
            .unwrap_or(source.len() - start);
        let snippet = Snippet::source(source.as_ref())
            .line_start(error.line)
            .path(file.as_ref())
            .annotation(AnnotationKind::Primary.span(start..start + width));
        let title = Level::ERROR
            .primary_title(message.as_ref())
            .element(snippet);
        let hint = error.hint.as_deref().map(clean::line);
        let report: Vec<Group<'_>> = match &hint {
            Some(hint) => vec![title.element(Level::HELP.message(hint.as_ref()))],
            None => vec![title],
        };
        out.push_str(&renderer.render(&report));
        out.push_str("\n\n");
    }
    out
}

/// Where the character of this column (from 1) starts, in bytes.
fn byte_of_column(line: &str, column: usize) -> usize {
    line.char_indices()
        .nth(column.saturating_sub(1))
        .map_or(line.len(), |(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mcp_spec::definition::{DefinitionFile, parse_one};

    #[test]
    fn errors_are_drawn_with_place_caret_and_mend() {
        let text = b"name = \"shop\"\nnode = \"rift\"\n\n[[components]]\nname = \"web\"\nimge = \"web:v1\"\n";
        let file = DefinitionFile {
            path: "services/shop.toml",
            bytes: text,
        };
        let (_, errors) = parse_one(file, &|_| None);
        let drawn = anstream::adapter::strip_str(&definition_errors(&errors)).to_string();
        assert!(drawn.contains("services/shop.toml:6:1"), "{drawn}");
        assert!(drawn.contains("6 | imge = \"web:v1\""), "{drawn}");
        assert!(drawn.contains("^^^^"), "{drawn}");
        assert!(drawn.contains("help: "), "{drawn}");
    }
}
