//! The program in a model's answer: the last fenced block after the thinking. Running it is [`super::code`]'s business.

use super::answer_part;

/// Languages that can be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    Python,
    Cpp,
}

impl Language {
    /// By the name that a row, or the line of a fence, gives it.
    pub fn parse(name: &str) -> Option<Self> {
        match name.trim().to_lowercase().as_str() {
            "python" | "py" | "python3" | "py3" | "pypy" | "pypy3" | "python2" => {
                Some(Self::Python)
            }
            "cpp" | "c++" | "cc" | "cxx" | "c++11" | "c++14" | "c++17" | "c++20" | "cpp17"
            | "cpp20" => Some(Self::Cpp),
            _ => None,
        }
    }
}

/// A fenced block: what its first line says about the language, and its lines.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Block {
    label: String,
    text: String,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    Program {
        source: String,
        language: Language,
        /// Whether it stood between fences; else the whole answer was taken.
        fenced: bool,
    },
    /// Nothing to run, and why.
    Nothing(String),
}

/// The program in `prediction`, the whole text a model wrote; `wanted` is the language that the row asks for.
///
/// It is the last fenced block, as LiveCodeBench takes it, except that blocks labelled as something else (`text`, `output`,
/// `bash`, another language than the one asked for) are passed over. Without any fence the answer itself is the program.
pub fn find(prediction: &str, wanted: Option<Language>) -> Found {
    let Some(answer) = answer_part(prediction) else {
        return Found::Nothing("the thinking never ends".into());
    };
    let blocks = blocks(answer);
    if blocks.is_empty() {
        let source = match answer.rsplit_once("<answer>") {
            Some((_, inside)) => inside.split("</answer>").next().unwrap_or(inside),
            None => answer,
        };
        let source = source.trim();
        if source.is_empty() {
            return Found::Nothing("the answer is empty".into());
        }
        if answer.contains("```") {
            return Found::Nothing("no closed code block in the answer".into());
        }
        return Found::Program {
            source: source.to_string(),
            language: wanted.unwrap_or(Language::Python),
            fenced: false,
        };
    }
    for block in blocks.iter().rev() {
        let language = match Language::parse(&block.label) {
            Some(named) if wanted.is_none_or(|wanted| wanted == named) => named,
            None if block.label.is_empty() => wanted.unwrap_or(Language::Python),
            _ => continue,
        };
        if block.text.trim().is_empty() {
            return Found::Nothing("the last code block is empty".into());
        }
        return Found::Program {
            source: block.text.clone(),
            language,
            fenced: true,
        };
    }
    let label = blocks.last().map_or("", |block| block.label.as_str());
    Found::Nothing(format!(
        "no code block in a language that can be run, the last is `{label}`"
    ))
}

/// All closed blocks. A fence with a label opens one even within another, which was then never closed; a line that ends
/// with a fence closes as well.
fn blocks(text: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut open: Option<(Block, usize)> = None;
    for line in text.lines() {
        let bare = line.trim_start();
        let indent = line.len() - bare.len();
        let fence = bare.starts_with("```");
        let rest = bare.trim_start_matches('`').trim();
        match &mut open {
            None if fence && !rest.contains("```") => {
                // "```python title" labels the block `python`
                let label = rest.split([' ', '{', ',', ':']).next().unwrap_or_default();
                let label = label.trim().to_lowercase();
                let text = String::new();
                open = Some((Block { label, text }, indent));
            }
            None => {}
            Some((block, _)) if fence && is_label(rest) => {
                let label = rest.to_lowercase();
                *block = Block {
                    label,
                    text: String::new(),
                };
            }
            Some(_) if fence => {
                found.extend(open.take().map(|(block, _)| block));
            }
            Some((block, indent)) => {
                // a block in a list is indented as a whole
                let own = line.len() - bare.len();
                let line = line.get((*indent).min(own)..).unwrap_or(line);
                match line.trim_end().strip_suffix("```") {
                    Some(code) if !code.contains("```") => {
                        block.text.push_str(code);
                        block.text.push('\n');
                        found.extend(open.take().map(|(block, _)| block));
                    }
                    _ => {
                        block.text.push_str(line);
                        block.text.push('\n');
                    }
                }
            }
        }
    }
    found
}

fn is_label(text: &str) -> bool {
    Language::parse(text).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(prediction: &str, wanted: Option<Language>) -> Option<(String, Language)> {
        match find(prediction, wanted) {
            Found::Program {
                source, language, ..
            } => Some((source, language)),
            Found::Nothing(_) => None,
        }
    }

    #[test]
    fn the_last_block_counts() {
        use Language::{Cpp, Python};
        type Case<'a> = (&'a str, Option<Language>, Option<(&'a str, Language)>);
        let cases: &[Case] = &[
            (
                "```python\na\n```\ntext\n```python\nb\n```",
                None,
                Some(("b\n", Python)),
            ),
            ("```\na\n```", None, Some(("a\n", Python))),
            ("```\na\n```", Some(Cpp), Some(("a\n", Cpp))),
            ("```cpp\na\n```", None, Some(("a\n", Cpp))),
            ("```C++\na\n```", None, Some(("a\n", Cpp))),
            (
                "<think>```python\nx\n```</think>\n```python\ny\n```",
                None,
                Some(("y\n", Python)),
            ),
            (
                "<think>```python\nx\n```</think> done",
                None,
                Some(("done", Python)),
            ),
            ("<think>```python\nx\n```", None, None),
            // an unclosed block is no program; one reopened is
            ("```python\nprint(1)", None, None),
            (
                "```python\nx\n```python\ny\n```",
                None,
                Some(("y\n", Python)),
            ),
            // what is labelled as output is not the program, what is not labelled may be
            (
                "```python\na\n```\nIt prints\n```text\n5\n```",
                None,
                Some(("a\n", Python)),
            ),
            (
                "```python\na\n```\n```bash\npip\n```",
                None,
                Some(("a\n", Python)),
            ),
            (
                "```python\na\n```\n```cpp\nb\n```",
                Some(Python),
                Some(("a\n", Python)),
            ),
            (
                "```python\na\n```\n```\nb\n```",
                None,
                Some(("b\n", Python)),
            ),
            ("```java\na\n```", None, None),
            ("```python\n\n```", None, None),
            ("", None, None),
            ("print(1)", None, Some(("print(1)", Python))),
            (
                "It is <answer>\nprint(1)\n</answer>",
                None,
                Some(("print(1)", Python)),
            ),
            (
                "1. Code:\n   ```python\n   if a:\n       b\n   ```\n",
                None,
                Some(("if a:\n    b\n", Python)),
            ),
            ("```python\nprint(1)```", None, Some(("print(1)\n", Python))),
            ("```python\r\na\r\n```\r\n", None, Some(("a\n", Python))),
            // one line with two fences is inline code
            (
                "use ```x``` here\n```python\na\n```",
                None,
                Some(("a\n", Python)),
            ),
        ];
        for (prediction, wanted, expected) in cases {
            let expected = expected.map(|(text, language)| (text.to_string(), language));
            assert_eq!(source(prediction, *wanted), expected, "{prediction:?}");
        }
    }
}
