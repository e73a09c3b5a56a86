//! What a card says of licences and origins, read back from a README.md or from the Hub's answer. Only that: it is no YAML
//! reader, and a card that says it in another way says nothing.

use super::card::License;
use serde_json::Value;

/// What a card says of where its model or data set comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CardFacts {
    pub licenses: Vec<License>,
    /// `base_model`
    pub bases: Vec<String>,
}

impl CardFacts {
    /// Of the text of a README.md.
    pub fn of_text(text: &str) -> Self {
        let all = |key: &str| front_matter_list(text, key);
        Self::new(
            all("license"),
            all("license_name").pop(),
            all("license_link").pop(),
            all("base_model"),
        )
    }

    /// Of `cardData` in the Hub's answer.
    pub fn of_json(card: &Value) -> Self {
        let all = |key: &str| match &card[key] {
            Value::String(one) => vec![one.clone()],
            Value::Array(several) => several
                .iter()
                .filter_map(|value| value.as_str().map(String::from))
                .collect(),
            _ => Vec::new(),
        };
        Self::new(
            all("license"),
            all("license_name").pop(),
            all("license_link").pop(),
            all("base_model"),
        )
    }

    fn new(
        ids: Vec<String>,
        name: Option<String>,
        link: Option<String>,
        bases: Vec<String>,
    ) -> Self {
        let license = |id: String| {
            let is_other = id == "other";
            License {
                id,
                name: name.clone().filter(|_| is_other),
                link: link.clone().filter(|_| is_other),
            }
        };
        let ids = ids.into_iter().map(|id| id.trim().to_ascii_lowercase());
        Self {
            licenses: ids.filter(|id| !id.is_empty()).map(license).collect(),
            bases,
        }
    }
}

/// A text of the YAML at the beginning of a card.
pub fn front_matter(card: &str, key: &str) -> Option<String> {
    front_matter_list(card, key).into_iter().next()
}

/// The texts of a key of the YAML at the beginning of a card: one, or a list in either of its forms.
fn front_matter_list(card: &str, key: &str) -> Vec<String> {
    let start = card.trim_start_matches('\u{feff}').trim_start();
    let Some(rest) = start.strip_prefix("---") else {
        return Vec::new();
    };
    let yaml = rest.split("\n---").next().unwrap_or_default();
    let mut lines = yaml.lines();
    let inline = lines.by_ref().find_map(|line| {
        let rest = line.strip_prefix(key)?.trim_start().strip_prefix(':')?;
        Some(without_comment(rest).to_string())
    });
    let Some(inline) = inline else {
        return Vec::new();
    };
    let found: Vec<String> = match inline.as_str() {
        // a list stands on the next lines, with or without indentation
        "" => lines
            .map_while(|line| line.trim_start().strip_prefix('-'))
            .map(|item| without_comment(item).to_string())
            .collect(),
        list if list.starts_with('[') => list
            .trim_matches(['[', ']'])
            .split(',')
            .map(str::to_string)
            .collect(),
        one => vec![one.to_string()],
    };
    let bare = found
        .iter()
        .map(|text| text.trim().trim_matches(['"', '\'']));
    bare.filter(|text| !text.is_empty() && *text != "null")
        .map(String::from)
        .collect()
}

fn without_comment(text: &str) -> &str {
    let end = text.find(" #").unwrap_or(text.len());
    let text = text[..end].trim();
    if text.starts_with('#') { "" } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn one_or_several_in_every_form() {
        let card = "---\nlicense: [mit, 'apache-2.0'] # both\nbase_model:\n- a/b\n  # no item\nlanguage:\n  - en\n  - zh\nempty:\ntags: null\n---\nlicense: not this\n";
        let all = |key: &str| front_matter_list(card, key);
        assert_eq!(all("license"), ["mit", "apache-2.0"]);
        assert_eq!(all("base_model"), ["a/b"]);
        assert_eq!(all("language"), ["en", "zh"]);
        for key in ["empty", "tags", "base", "other"] {
            assert!(all(key).is_empty(), "{key}");
        }
        assert_eq!(front_matter(card, "license").as_deref(), Some("mit"));
        assert_eq!(front_matter("no card", "license"), None);
        assert_eq!(front_matter("---", "license"), None);
    }

    #[test]
    fn a_licence_of_its_own_has_a_name_and_a_place() {
        let text = "---\nlicense: other\nlicense_name: qwen-research\nlicense_link: https://x/LICENSE\nbase_model: Qwen/Qwen2.5-3B\n---\n";
        let json = json!({"license": "other", "license_name": "qwen-research", "license_link": "https://x/LICENSE",
            "base_model": ["Qwen/Qwen2.5-3B"]});
        let want = CardFacts {
            licenses: vec![License {
                id: "other".into(),
                name: Some("qwen-research".into()),
                link: Some("https://x/LICENSE".into()),
            }],
            bases: vec!["Qwen/Qwen2.5-3B".into()],
        };
        assert_eq!(CardFacts::of_text(text), want);
        assert_eq!(CardFacts::of_json(&json), want);
        assert_eq!(CardFacts::of_json(&Value::Null), CardFacts::default());
        // a name without `other` says nothing
        let known = CardFacts::of_text("---\nlicense: MIT\nlicense_name: x\n---");
        assert_eq!(
            (known.licenses[0].id.as_str(), &known.licenses[0].name),
            ("mit", &None)
        );
    }
}
