//! No input makes the reader panic, and every error it gives is whole.

use proptest::prelude::*;

use super::*;

/// Bytes that a definition might be made of, so that the parser is led beyond the first line.
fn definition_like() -> impl Strategy<Value = String> {
    proptest::collection::vec(
        prop_oneof![
            proptest::sample::select(vec![
                "name = ",
                "node = ",
                "\"shop\"",
                "[[components]]\n",
                "[components.health]\n",
                "image",
                "ports = [",
                "\"80:80\"",
                "]",
                "\n",
                "{ ",
                " }",
                ", ",
                "= ",
                "1",
                "true",
                "health",
                "files = [{ from = \"files/shop/a\", to = \"/a\" }]",
                "volumes = ",
                "\"a:/x\"",
                "\"\"\"",
                "'",
                "#",
                "\u{feff}",
                "é",
                "\r\n",
                "\t",
                "networks",
                ".",
                "resources",
                "depends_on = [\"shop\"]",
                "extra_hosts",
                "env",
                "\\u0000",
            ])
            .prop_map(str::to_owned),
            ".{0,4}",
        ],
        0..60,
    )
    .prop_map(|parts| parts.concat())
}

fn survives(bytes: &[u8]) {
    let file = DefinitionFile {
        path: "services/shop.toml",
        bytes,
    };
    let (spec, errors) = parse_one(file, &lookup);
    assert_eq!(spec.is_some(), errors.is_empty());
    for error in &errors {
        assert!(error.span.end <= bytes.len());
        assert!(error.hint.is_some());
        let _ = error.render();
    }
    let _ = compile_for_node(&[file, file], &"rift".parse().unwrap(), &lookup);
    let _ = placements(&[file, file]);
    assert_eq!(compile(&[file], &lookup).is_ok(), errors.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        survives(&bytes);
    }

    #[test]
    fn no_text_makes_it_panic(text in definition_like()) {
        survives(text.as_bytes());
    }

    #[test]
    fn no_damage_to_a_good_definition_makes_it_panic(
        at in 0..EXAMPLE.len(),
        length in 0..40_usize,
        instead in ".{0,3}",
    ) {
        let mut bytes = EXAMPLE.as_bytes().to_vec();
        let end = (at + length).min(bytes.len());
        bytes.splice(at..end, instead.bytes());
        survives(&bytes);
    }

    #[test]
    fn no_value_makes_it_panic(key in 0..30_usize, value in "[ -~é\u{1}]{0,16}") {
        let key = component::COMPONENT.keys[key];
        for value in [value.clone(), format!("\"{value}\""), format!("['''{value}''']")] {
            let text = format!(
                "name = \"shop\"\nnode = \"rift\"\n[[components]]\nname = \"a\"\nimage = \"b\"\n[[components]]\n{key} = {value}\n"
            );
            survives(text.as_bytes());
        }
    }
}
