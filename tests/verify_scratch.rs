use serde_json::Value;
use std::collections::HashMap;
fn rows(p:&str)->Vec<Value>{ std::fs::read_to_string(p).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect() }
#[test]
fn traces() {
    let d="/work/shared/data/traces/";
    for (set,lab) in [("gsm8k_normal_DSQ","labels_DSQ"),("math_normal_DSQ","labels_DSQ"),("gsm8k_normal_s1.1","labels_s1.1"),("math_normal_s1.1","labels_s1.1"),("gsm8k_normal_nonthinking","")] {
        let labels: HashMap<String,Option<bool>> = if lab.is_empty() {HashMap::new()} else {rows(&format!("{d}{lab}.jsonl")).iter().map(|r|(r["id"].as_str().unwrap().to_string(), r["correct"].as_bool())).collect()};
        for kind in ["number","boxed"] {
        let mut t: HashMap<(Option<bool>,String),usize>=HashMap::new();
        let mut shown=0;
        let t0=std::time::Instant::now();
        for r in rows(&format!("{d}{set}.jsonl")) {
            let id=r["id"].as_str().unwrap();
            let label = if lab.is_empty() { r["upstream_eval"].as_f64().map(|v| v>0.5)} else {labels[id]};
            let v=distill::verify::check(kind,r["response"].as_str().unwrap(),r["gold"].as_str().unwrap_or("")).unwrap();
            *t.entry((label,format!("{:?}",v.outcome))).or_default()+=1;
            if label.is_some() && label!=Some(v.is_correct()) && kind=="number" && shown<12 { shown+=1; let resp=r["response"].as_str().unwrap(); let tail: String=resp.chars().rev().take(150).collect::<Vec<_>>().into_iter().rev().collect(); println!("{id} label {label:?} gold {} -> {v:?} tail {tail:?}", r["gold"]); }
        }
        let mut t: Vec<_>=t.into_iter().collect(); t.sort();
        println!("{set} {kind} {t:?} {:?}", t0.elapsed());
        }
    }
    let mut bad=0; let mut n=0;
    for r in rows("/work/shared/data/eval_sets/gsm8k.jsonl") { n+=1; let g=r["answer"].as_str().unwrap(); let a=g.rsplit("#### ").next().unwrap(); if !distill::verify::check("number", &format!("\\boxed{{{a}}}"), g).unwrap().is_correct() {bad+=1; println!("{a}");} }
    println!("gsm8k {bad} of {n}");
    for f in ["math500","aime24","math_test_5000","gaokao2023en"] {
    let mut bad=0; let mut n=0; let mut nums=0;
    for r in rows(&format!("/work/shared/data/eval_sets/{f}.jsonl")) { n+=1; let Some(sol)=r["solution"].as_str() else {continue}; let g=match &r["answer"] {Value::String(s)=>s.clone(), Value::Number(x)=>x.to_string(), _=>continue}; if distill::verify::number::parse(&g).is_some() {nums+=1}; if !distill::verify::check("boxed", sol, &g).unwrap().is_correct() {bad+=1; if bad<10 {println!("{g} {:?}", distill::verify::extract_boxed(sol));}} }
    println!("{f} {bad} of {n}, numeric {nums}");
    }
}
