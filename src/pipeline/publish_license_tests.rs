//! What is owed by name, licence by licence: names, texts, notices, words; chains of origins, teachers, data sets.

use super::*;
use crate::progress::Stop;
use crate::recipe::card::Card;
use crate::recipe::plan::model_source;

use super::super::publish_lineage::{Base, Lineage, SourceUse, Step};
use std::path::Path;

const LLAMA_31: &str = "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n...";
const COMMIT: &str = "0123456789012345678901234567890123456789";

/// A cache with the files of repositories in it: `models--a--b/NAME` and their texts.
fn cache(files: &[(&str, &str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (repo, name, text) in files {
        let (kind, repo) = match repo.strip_prefix("datasets/") {
            Some(repo) => ("datasets", repo),
            None => ("models", *repo),
        };
        let repo = format!("{kind}--{}", repo.replace('/', "--"));
        let folder = dir.path().join(repo).join("snapshots").join(COMMIT);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name), text).unwrap();
    }
    dir
}

/// The first of `models` is trained on what the others wrote, and on the data sets.
fn lineage(models: &[&str], data: &[&str]) -> Lineage {
    let base = |name: &&str| {
        let (source, card): (_, Option<Card>) = model_source(name).unwrap();
        Base {
            source,
            commit: None,
            card,
        }
    };
    let source = |name: &&str| SourceUse {
        source: name.to_string(),
        config: None,
        split: "train".into(),
        revision: Some(COMMIT.into()),
        is_on_hub: true,
    };
    Lineage {
        run: "r".into(),
        stage: "sft".into(),
        bases: models.iter().map(base).collect(),
        has_weights: true,
        judges: Vec::new(),
        quant: None,
        steps: vec![Step {
            name: "sft".into(),
            kind: "sft",
            from: None,
            sources: data.iter().map(source).collect(),
            is_own: true,
            settings: Vec::new(),
            folders: Vec::new(),
        }],
        evals: Vec::new(),
    }
}

fn with(repo: &str, lineage: &Lineage, wishes: &Wishes, cache: &Path) -> Result<Duties> {
    let hub = Licenses::with_cache(None, &Stop::default(), cache.to_path_buf());
    duties(repo, &Chain::of(lineage, &hub), wishes, &hub)
}

fn of(repo: &str, models: &[&str], wishes: &Wishes) -> Result<Duties> {
    with(repo, &lineage(models, &[]), wishes, Path::new("/nowhere"))
}

fn paths(duties: &Duties) -> Vec<&str> {
    duties.files.iter().map(|file| file.path.as_str()).collect()
}

fn text<'a>(duties: &'a Duties, path: &str) -> &'a str {
    let found = duties.files.iter().find(|file| file.path == path).unwrap();
    match &found.source {
        crate::hub::publish_files::Source::Text(text) => text,
        crate::hub::publish_files::Source::File(_) => panic!("{path} is a file"),
    }
}

#[test]
fn apache_goes_with_its_text() {
    let done = of("you/x", &["qwen2.5-math-7b"], &Wishes::default()).unwrap();
    assert_eq!(done.license.as_ref().unwrap().id, "apache-2.0");
    assert_eq!(paths(&done), ["LICENSE"]);
    assert!(done.notes[0].contains("changed version of those of Qwen/Qwen2.5-Math-7B"));
    assert!(done.warnings.is_empty());
}

#[test]
fn a_llama_is_named_noticed_and_shipped_with_its_agreement() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("L");
    fs::write(&file, "AGREEMENT").unwrap();
    let wishes = Wishes {
        license_file: file.to_str(),
        ..Wishes::default()
    };
    for (model, version) in [("llama-3.1-8b", "3.1"), ("llama-3.3-70b-instruct", "3.3")] {
        let done = of("you/Llama-x", &[model], &wishes).unwrap();
        assert_eq!(done.license.as_ref().unwrap().id, format!("llama{version}"));
        assert_eq!(done.displays, ["Built with Llama"]);
        let notice = format!(
            "Llama {version} is licensed under the Llama {version} Community License, Copyright © Meta Platforms, Inc. All Rights Reserved.\n"
        );
        assert_eq!(paths(&done), ["LICENSE", "NOTICE"]);
        assert_eq!(text(&done, "LICENSE"), "AGREEMENT");
        assert_eq!(text(&done, "NOTICE"), notice);
    }
    let error = of("you/x", &["llama-3.1-8b"], &wishes).unwrap_err();
    let want = "wants a name that begins with `Llama`";
    assert!(error.to_string().ends_with(want), "{error}");
    let error = of("you/Llama-x", &["llama-3.1-8b"], &Wishes::default()).unwrap_err();
    assert!(error.hint().unwrap().contains("--license-file"), "{error}");
    let wishes = Wishes {
        license: Some("mit"),
        ..wishes
    };
    let error = of("you/Llama-x", &["llama-3.1-8b"], &wishes).unwrap_err();
    assert!(
        error.to_string().contains("stays under `llama3.1`"),
        "{error}"
    );
}

#[test]
fn a_teachers_agreement_stands_beside_the_students_licence() {
    let models = ["qwen2.5-math-7b", "llama-3.1-8b"];
    let cache = cache(&[("meta-llama/Llama-3.1-8B", "LICENSE", LLAMA_31)]);
    let both = lineage(&models, &[]);
    let error = with("you/x", &both, &Wishes::default(), cache.path()).unwrap_err();
    let want = "wants a name that begins with `Llama`";
    assert!(error.to_string().ends_with(want), "{error}");
    let done = with("you/Llama-x", &both, &Wishes::default(), cache.path()).unwrap();
    assert_eq!(done.license.as_ref().unwrap().id, "apache-2.0");
    assert_eq!(paths(&done), ["LICENSE", "LICENSE-LLAMA-3.1", "NOTICE"]);
    assert!(text(&done, "LICENSE").contains("Apache License"));
    assert_eq!(text(&done, "LICENSE-LLAMA-3.1"), LLAMA_31);
    assert!(
        done.notes[0].contains("wrote or judged"),
        "{:?}",
        done.notes
    );
    // the same with the file of the command line, which is no licence of the student
    let given = cache.path().join("given");
    fs::write(&given, LLAMA_31).unwrap();
    let wishes = Wishes {
        license_file: given.to_str(),
        ..Wishes::default()
    };
    let done = of("you/Llama-x", &models, &wishes).unwrap();
    assert_eq!(paths(&done), ["LICENSE", "LICENSE-LLAMA-3.1", "NOTICE"]);
    assert!(text(&done, "LICENSE").contains("Apache License"));
}

#[test]
fn a_card_that_says_less_than_its_weights_owe_is_not_believed() {
    let distill = "deepseek-ai/DeepSeek-R1-Distill-Llama-8B";
    let error = of("you/x", &[distill], &Wishes::default()).unwrap_err();
    let want = "wants a name that begins with `Llama`";
    assert!(error.to_string().ends_with(want), "{error}");
    let cache = cache(&[
        (distill, "README.md", "---\nlicense: mit\n---\n"),
        (distill, "LICENSE", "MIT License"),
        ("meta-llama/Llama-3.1-8B", "LICENSE", LLAMA_31),
        ("meta-llama/Llama-3.1-8B", "USE_POLICY.md", "policy"),
    ]);
    let one = lineage(&[distill], &[]);
    let done = with("you/Llama-x", &one, &Wishes::default(), cache.path()).unwrap();
    assert_eq!(done.license.as_ref().unwrap().id, "llama3.1");
    assert_eq!(
        paths(&done),
        ["LICENSE", "LICENSE-LLAMA-3.1", "USE_POLICY.md", "NOTICE"]
    );
    assert_eq!(text(&done, "LICENSE"), "MIT License");
    assert_eq!(
        done.notes[0],
        format!(
            "meta-llama/Llama-3.1-8B (of which {distill} was made) was used to make this model. It is licensed under the Llama 3.1 Community License, whose text is in `LICENSE-LLAMA-3.1`; the attribution is in `NOTICE`. The acceptable use policy of the licence applies to this model too."
        )
    );
    let wishes = Wishes {
        license: Some("mit"),
        ..Wishes::default()
    };
    let error = with("you/Llama-x", &one, &wishes, cache.path()).unwrap_err();
    assert!(error.to_string().contains("stays under `llama3.1`"));
    // a chain of cards, one after the other
    let cache = self::cache(&[
        (
            "a/tuned",
            "README.md",
            "---\nlicense: mit\nbase_model: b/merged\n---\n",
        ),
        (
            "b/merged",
            "README.md",
            "---\nbase_model:\n- c/one\n- meta-llama/Llama-3.2-1B\n---\n",
        ),
    ]);
    let one = lineage(&["a/tuned"], &[]);
    let error = with("you/x", &one, &Wishes::default(), cache.path()).unwrap_err();
    assert!(error.to_string().ends_with(want), "{error}");
}

#[test]
fn a_link_that_cannot_be_followed_is_said() {
    let cache = cache(&[(
        "a/tuned",
        "README.md",
        "---\nlicense: mit\nbase_model: b/unknown\n---\n",
    )]);
    let one = lineage(&["a/tuned"], &[]);
    let done = with("you/x", &one, &Wishes::default(), cache.path()).unwrap();
    assert_eq!(done.license.as_ref().unwrap().id, "mit");
    assert_eq!(
        done.notes.last().unwrap(),
        "The licence of b/unknown (of which a/tuned was made) could not be read: see there."
    );
    assert_eq!(done.warnings.len(), 1);
    assert!(done.notes[0].contains("; its text: `https://huggingface.co/a/tuned/tree/main`."));
}

#[test]
fn outputs_that_may_improve_no_other_model_are_refused() {
    for (teacher, name) in [
        ("meta-llama/Llama-2-7b-chat-hf", "LLAMA 2"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "Meta Llama 3"),
    ] {
        let repo = "you/Llama-3-x";
        let models = ["qwen2.5-math-7b", teacher];
        let error = of(repo, &models, &Wishes::default()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "`{repo}` learns from outputs of {teacher}, and the {name} Community License does not allow them to improve any other model"
            )
        );
        assert!(error.hint().unwrap().contains("Llama 3.1"));
    }
    // its own kind may
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("L");
    fs::write(&file, "AGREEMENT").unwrap();
    let wishes = Wishes {
        license_file: file.to_str(),
        ..Wishes::default()
    };
    let models = ["meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-70b-chat-hf"];
    of("you/x", &models, &wishes).unwrap();
    // and so for a data set that says so
    let cache = cache(&[(
        "datasets/a/traces",
        "README.md",
        "---\nlicense: llama3\n---\n",
    )]);
    let one = lineage(&["qwen2.5-math-7b"], &["a/traces"]);
    let error = with("you/Llama-3-x", &one, &Wishes::default(), cache.path()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("outputs of the data set a/traces"),
        "{error}"
    );
}

#[test]
fn licences_of_their_own_are_passed_on() {
    let card = "---\nlicense: other\nlicense_name: qwen-research\nlicense_link: https://huggingface.co/Qwen/Qwen2.5-3B/blob/main/LICENSE\n---\n";
    let agreement = "Qwen RESEARCH LICENSE AGREEMENT";
    let cache = cache(&[
        ("Qwen/Qwen2.5-3B", "README.md", card),
        ("Qwen/Qwen2.5-3B", "LICENSE", agreement),
    ]);
    let one = lineage(&["Qwen/Qwen2.5-3B"], &[]);
    let done = with("you/x", &one, &Wishes::default(), cache.path()).unwrap();
    assert_eq!(
        done.license,
        Some(License {
            id: "other".into(),
            name: Some("qwen-research".into()),
            link: Some("LICENSE".into()),
        })
    );
    assert_eq!(paths(&done), ["LICENSE", "NOTICE"]);
    assert_eq!(text(&done, "LICENSE"), agreement);
    assert_eq!(done.displays, ["Built with Qwen"]);
    assert!(done.warnings[0].ends_with("allows no commercial use"));
    // one that nobody knows, without its text: its link
    let card = "---\nlicense: other\nlicense_name: mine\nlicense_link: TERMS.md\n---\n";
    let cache = self::cache(&[("a/b", "README.md", card)]);
    let one = lineage(&["a/b@v1"], &[]);
    let done = with("you/x", &one, &Wishes::default(), cache.path()).unwrap();
    assert_eq!(
        done.license,
        Some(License {
            id: "other".into(),
            name: Some("mine".into()),
            link: Some("https://huggingface.co/a/b/blob/v1/TERMS.md".into()),
        })
    );
    // any other licence goes with the text that lies there
    let cache = self::cache(&[
        ("a/b", "README.md", "---\nlicense: mit\n---\n"),
        ("a/b", "LICENSE", "MIT License"),
        ("a/b", "NOTICE", "by a"),
    ]);
    let one = lineage(&["a/b"], &[]);
    let done = with("you/x", &one, &Wishes::default(), cache.path()).unwrap();
    assert_eq!(paths(&done), ["LICENSE", "NOTICE"]);
    assert_eq!(text(&done, "NOTICE"), "by a");
    // a licence of the user's choice does not end that of what was changed
    let wishes = Wishes {
        license: Some("cc0-1.0"),
        ..Wishes::default()
    };
    let done = with("you/x", &one, &wishes, cache.path()).unwrap();
    assert_eq!(done.license.as_ref().unwrap().id, "cc0-1.0");
    assert_eq!(paths(&done), ["LICENSE-MIT", "NOTICE"]);
}

#[test]
fn what_data_sets_do_not_allow_is_told() {
    let cache = cache(&[
        (
            "datasets/a/nc",
            "README.md",
            "---\nlicense: cc-by-nc-4.0\n---\n",
        ),
        (
            "datasets/a/free",
            "README.md",
            "---\nlicense: apache-2.0\n---\n",
        ),
        ("datasets/a/silent", "README.md", "no card"),
    ]);
    let one = lineage(
        &["qwen2.5-math-7b"],
        &["a/nc", "a/free", "a/silent", "a/absent"],
    );
    let hub = Licenses::with_cache(None, &Stop::default(), cache.path().to_path_buf());
    let chain = Chain::of(&one, &hub);
    let words: Vec<String> = chain.data.iter().map(|data| data.in_words()).collect();
    assert_eq!(
        words,
        ["cc-by-nc-4.0", "apache-2.0", "not stated", "not known"]
    );
    let done = duties("you/x", &chain, &Wishes::default(), &hub).unwrap();
    let want = "data set a/nc is under `cc-by-nc-4.0`, which allows no commercial use";
    assert_eq!(done.notes.last().unwrap(), &format!("The {want}."));
    assert_eq!(done.warnings, [format!("the {want}")]);
}

#[test]
fn licences_that_bind_whoever_uses_the_result() {
    for (id, want) in [
        ("cc-by-nc-4.0", Some("allows no commercial use")),
        (
            "cc-by-nc-nd-4.0",
            Some("allows no commercial use and no changed versions"),
        ),
        ("cc-by-nd-4.0", Some("allows no changed versions")),
        ("qwen-research", Some("allows no commercial use")),
        ("mit", None),
        ("apache-2.0", None),
        ("cc-by-sa-4.0", None),
    ] {
        let license = License {
            id: id.into(),
            ..License::default()
        };
        assert_eq!(limit(&license), want, "{id}");
    }
}
