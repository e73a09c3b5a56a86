//! The student of a stage: which weights it starts from, and how they are trained and asked.

use super::card::Card;
use super::graph::Resolver;
use super::plan::{self, StudentPlan};
use super::stage::{Kind, Leaves, StageRecipe};
use super::{Method, Student};
use crate::{Error, Result};

impl Resolver<'_> {
    /// The student with its weights: an earlier stage's, those that `model` names, or the recipe's student.
    pub(super) fn student(
        &mut self,
        number: usize,
        stage: &StageRecipe,
    ) -> Result<(StudentPlan, Option<String>, Option<Card>)> {
        let own = stage.student.as_ref();
        let whole = stage.kind == Kind::RewardModel;
        if whole && own.is_some_and(|own| !matches!(own.method, None | Some(Method::Full))) {
            return Err(
                Error::input("a reward model is trained whole, not by adapters")
                    .with_hint("leave `method` out of the stage's `[stage.student]`"),
            );
        }
        let (mut student, model, card) = self.student_of(number, stage, own)?;
        if whole {
            // the recipe's method is meant for what learns text
            (student.method, student.adapter) = (Method::Full, None);
        }
        Ok((student, model, card))
    }

    fn student_of(
        &mut self,
        number: usize,
        stage: &StageRecipe,
        own: Option<&Student>,
    ) -> Result<(StudentPlan, Option<String>, Option<Card>)> {
        if stage.model.is_some()
            && own.is_some_and(|student| student.model.is_some() || student.init.is_some())
        {
            return Err(
                Error::input("the stage has `model`, and `[stage.student]` a model too")
                    .with_hint("keep one of them"),
            );
        }
        let Some(model) = &stage.model else {
            let table = match (own.cloned(), &self.recipe.student) {
                (Some(mut own), Some(all)) if own.model.is_none() && own.init.is_none() => {
                    own.complete(all);
                    Some(own)
                }
                (own, all) => own.or_else(|| all.clone()),
            };
            let Some(table) = table else {
                return Err(
                    Error::input("no `model`, and the recipe has no `[student]`").with_hint(
                        "add `model = \"@stage\"`, or `[student]` with `model = ...` to the recipe",
                    ),
                );
            };
            let (student, card) = plan::resolve_student(&table, &mut self.notes)?;
            return Ok((student, None, card));
        };
        if let Some((base, card)) = self.earlier(number, "model", model, Leaves::Model)? {
            let mut student = base.student()?.clone();
            if let Some(own) = own {
                student.change(own, card.as_ref())?;
            }
            return Ok((student, Some(base.name.clone()), card.clone()));
        }
        // only how it is computed; what belongs to another checkpoint does not come along
        let mut table = own.cloned().unwrap_or_default();
        if let Some(student) = &self.recipe.student {
            table.compute_as(student);
        }
        table.model = Some(model.clone());
        table.init = None;
        let (student, card) = plan::resolve_student(&table, &mut self.notes)?;
        Ok((student, None, card))
    }
}
