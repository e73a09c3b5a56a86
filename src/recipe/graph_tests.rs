//! What a stage's own `[stage.student]` leaves to others.

use super::*;
use crate::recipe::{Dtype, load};

#[test]
fn a_stage_inherits_what_its_student_does_not_set() {
    let plan = |own: &str| {
        let text = format!(
            "name = \"x\"\n[student]\nmodel = \"a/b\"\ndtype = \"bf16\"\n\
             [[stage]]\nname = \"one\"\nkind = \"sft\"\ntraces = \"t.jsonl\"\n\
             [stage.sft]\nlearning_rate = 1e-5\n\
             [[stage]]\nname = \"two\"\nkind = \"generate\"\nprompts = \"builtin:arithmetic\"\n{own}"
        );
        let recipe: PipelineRecipe = load::parse(&text, "r.toml", &[]).unwrap();
        let plan = resolve(&recipe).unwrap();
        plan.stages[1].student.clone().unwrap()
    };
    let longer = "[stage.student]\nmax_position_embeddings = 99\n";
    for (own, dtype) in [
        ("model = \"@one\"\n".to_string(), Dtype::Bf16),
        (format!("model = \"@one\"\n{longer}"), Dtype::Bf16),
        (format!("model = \"c/d\"\n{longer}"), Dtype::Bf16),
        (
            format!("model = \"@one\"\n{longer}dtype = \"f16\"\n"),
            Dtype::F16,
        ),
    ] {
        assert_eq!(plan(&own).dtype, dtype, "{own}");
    }
}
