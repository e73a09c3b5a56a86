//! How the family `bilingual` reads, in English and in Chinese: problems, steps, answers and wishes, and the words they
//! are made of. Which of them a trace gets is decided in [`super::bilingual`].

use super::builtin_text::sign;
use super::builtin_tokenizer;
use super::chain::{Chain, Op, Random, Step};
use crate::Result;
use crate::tokenize::TextTokenizer;

/// A language of the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tongue {
    English,
    Chinese,
}

impl Tongue {
    pub const BOTH: [Self; 2] = [Self::English, Self::Chinese];

    pub fn other(self) -> Self {
        match self {
            Self::English => Self::Chinese,
            Self::Chinese => Self::English,
        }
    }

    /// The English text or the Chinese one.
    pub fn choose<T>(self, english: T, chinese: T) -> T {
        match self {
            Self::English => english,
            Self::Chinese => chinese,
        }
    }
}

/// Names of people: the same number in both languages.
const NAMES: [[&str; 6]; 2] = [
    ["Mia", "Tom", "Ada", "Leo", "Eva", "Max"],
    ["小明", "小红", "小华", "小丽", "小军", "小芳"],
];

/// What is wished, and how one says it: occasion, wish, reason to think of.
const OCCASIONS: [[[&str; 3]; 4]; 2] = [
    [
        ["a birthday", "Happy birthday", "a long and happy life"],
        ["the new year", "Happy new year", "a good year and health"],
        ["an exam", "Good luck", "a clear head and courage"],
        ["a journey", "Safe travels", "good weather and friends"],
    ],
    [
        ["生日", "生日快乐", "天天开心"],
        ["新年", "新年快乐", "身体健康"],
        ["考试", "考试顺利", "取得好成绩"],
        ["旅行", "一路平安", "玩得高兴"],
    ],
];

/// One of two wordings.
pub fn problem(chain: &Chain, tongue: Tongue, random: &mut Random) -> String {
    let start = chain.start;
    let steps = |add: &str, subtract: &str, multiply: &str, between: &str| -> String {
        let steps = chain.steps.iter().map(|step| {
            let verb = match step.op {
                Op::Add => add,
                Op::Subtract => subtract,
                Op::Multiply => multiply,
            };
            format!("{between}{verb}{}", step.operand)
        });
        steps.collect()
    };
    match (tongue, random.percent(50)) {
        (Tongue::English, true) => format!(
            "Start with {start}{}. What is the result?",
            steps("add ", "subtract ", "multiply by ", ", ")
        ),
        (Tongue::English, false) => format!(
            "What is {start}{}, from left to right?",
            steps("plus ", "minus ", "times ", " ")
        ),
        (Tongue::Chinese, true) => {
            format!(
                "从{start}开始{}。结果是多少？",
                steps("加", "减", "乘", "，")
            )
        }
        (Tongue::Chinese, false) => {
            format!(
                "{start}{}，从左到右是多少？",
                steps("加上", "减去", "乘以", "")
            )
        }
    }
}

/// How reasoning begins.
pub fn opening(tongue: Tongue) -> &'static str {
    tongue.choose("Let me work step by step.\n", "我一步一步来算。\n")
}

/// Step `index` of `num_steps`, with what the writer takes for its result.
pub fn step(step: &Step, result: i64, index: usize, num_steps: usize, tongue: Tongue) -> String {
    let word = match index {
        0 => tongue.choose("First ", "先算"),
        _ if index + 1 == num_steps => tongue.choose("Finally ", "最后算"),
        1 => tongue.choose("Then ", "然后算"),
        _ => tongue.choose("Next ", "接着算"),
    };
    let (before, sign, operand) = (step.before, sign(step.op), step.operand);
    let end = tongue.choose(".\n", "。\n");
    format!("{word}{before}{sign}{operand}={result}{end}")
}

/// The last step undone.
pub fn check(step: &Step, tongue: Tongue) -> String {
    let (result, operand, before) = (step.after, step.operand, step.before);
    match tongue {
        Tongue::English => format!("Wait, let me check: {result}+{operand}={before}. Good.\n"),
        Tongue::Chinese => format!("等等，检查一下：{result}+{operand}={before}。对。\n"),
    }
}

/// What stands after the reasoning.
pub fn answer(result: i64, tongue: Tongue) -> String {
    match tongue {
        Tongue::English => format!("The answer is \\boxed{{{result}}}."),
        Tongue::Chinese => format!("答案是\\boxed{{{result}}}。"),
    }
}

/// Somebody to whom something is wished: the same in both languages but for the names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    pub tongue: Tongue,
    name: usize,
    occasion: usize,
}

impl Wish {
    /// Any whose request is not held out, and which of the two wordings that is.
    pub fn draw(tongue: Tongue, random: &mut Random) -> (Self, bool) {
        loop {
            let wish = Self {
                tongue,
                name: random.between(0, NAMES[0].len() as i64 - 1) as usize,
                occasion: random.between(0, OCCASIONS[0].len() as i64 - 1) as usize,
            };
            let first = random.percent(50);
            if !wish.is_held_out(first) {
                return (wish, first);
            }
        }
    }

    pub fn with_tongue(self, tongue: Tongue) -> Self {
        Self { tongue, ..self }
    }

    /// The same wish to somebody else.
    pub fn to_another(self, random: &mut Random) -> Self {
        let others = NAMES[0].len() as i64 - 1;
        let name = (self.name + random.between(1, others) as usize) % NAMES[0].len();
        Self { name, ..self }
    }

    pub fn name(self) -> &'static str {
        NAMES[self.tongue as usize][self.name]
    }

    fn words(self) -> [&'static str; 3] {
        OCCASIONS[self.tongue as usize][self.occasion]
    }

    /// The same person and another occasion.
    pub fn for_another(self, random: &mut Random) -> Self {
        let others = OCCASIONS[0].len() as i64 - 1;
        let occasion = (self.occasion + random.between(1, others) as usize) % OCCASIONS[0].len();
        Self { occasion, ..self }
    }

    /// A quarter of all requests, each of which is made in the other wording too: nobody asks these but a suite.
    fn is_held_out(self, first: bool) -> bool {
        (self.name + self.occasion) % 4 == if first { 0 } else { 2 }
    }

    /// All held-out ones with their wordings, the languages in turn.
    pub fn held_out() -> impl Iterator<Item = (Self, bool)> {
        let all = [true, false].into_iter().flat_map(|first| {
            let people = (0..NAMES[0].len())
                .flat_map(|name| (0..OCCASIONS[0].len()).map(move |occasion| (name, occasion)));
            people.flat_map(move |(name, occasion)| {
                Tongue::BOTH.map(|tongue| {
                    let wish = Self {
                        tongue,
                        name,
                        occasion,
                    };
                    (wish, first)
                })
            })
        });
        all.filter(|(wish, first)| wish.is_held_out(*first))
    }

    /// One of two wordings of the request.
    pub fn prompt(self, first: bool) -> String {
        let (name, [occasion, ..]) = (self.name(), self.words());
        match (self.tongue, first) {
            (Tongue::English, true) => format!("Write a wish to {name} for {occasion}."),
            (Tongue::English, false) => format!("What can I say to {name} for {occasion}?"),
            (Tongue::Chinese, true) => format!("给{name}写一句{occasion}祝福。"),
            (Tongue::Chinese, false) => format!("{occasion}的时候对{name}说什么好？"),
        }
    }

    /// What one thinks before.
    pub fn reasoning(self) -> String {
        let (name, [occasion, ..]) = (self.name(), self.words());
        match self.tongue {
            Tongue::English => format!("A wish to {name} for {occasion}.\n"),
            Tongue::Chinese => format!("给{name}的{occasion}祝福。\n"),
        }
    }

    /// Warm, to the right person, in two sentences.
    pub fn good(self) -> String {
        let (name, [_, wish, more]) = (self.name(), self.words());
        match self.tongue {
            Tongue::English => format!("{wish}, {name}! I wish you {more}."),
            Tongue::Chinese => format!("{name}，{wish}！祝你{more}。"),
        }
    }

    /// To nobody, without warmth.
    pub fn curt(self) -> String {
        let [_, wish, _] = self.words();
        format!("{wish}{}", self.tongue.choose(".", "。"))
    }
}

/// What the texts above are made of, each one token. Any other text falls into bytes; nothing is unknown.
const WORDS: [&str; 135] = [
    "user",
    "assistant",
    "system",
    "\n\n",
    ".\n",
    "}.",
    " \\",
    "boxed",
    "First",
    "Then",
    "Next",
    "Finally",
    "Wait",
    "Let",
    " let",
    " me",
    " work",
    " step",
    " by",
    " check",
    " Good",
    "The",
    " answer",
    " is",
    "Start",
    " with",
    " add",
    " subtract",
    " multiply",
    " What",
    " the",
    " result",
    "What",
    " plus",
    " minus",
    " times",
    " from",
    " left",
    " to",
    " right",
    "Mia",
    "Tom",
    "Ada",
    "Leo",
    "Eva",
    "Max",
    " Mia",
    " Tom",
    " Ada",
    " Leo",
    " Eva",
    " Max",
    " a",
    " an",
    " birthday",
    " new",
    " year",
    " exam",
    " journey",
    "Happy",
    "Good",
    " luck",
    "Safe",
    " travels",
    " long",
    " and",
    " happy",
    " life",
    " good",
    " health",
    " clear",
    " head",
    " courage",
    " weather",
    " friends",
    "Write",
    " wish",
    " for",
    " can",
    " I",
    " say",
    "A",
    " you",
    "从",
    "开始",
    "加",
    "减",
    "乘",
    "加上",
    "减去",
    "乘以",
    "，",
    "。",
    "？",
    "！",
    "：",
    "。\n",
    "结果",
    "是",
    "多少",
    "从左",
    "到右",
    "我",
    "一步",
    "来算",
    "先算",
    "然后",
    "最后",
    "接着",
    "算",
    "等等",
    "检查",
    "一下",
    "对",
    "答案",
    "小明",
    "小红",
    "小华",
    "小丽",
    "小军",
    "小芳",
    "生日",
    "快乐",
    "新年",
    "考试",
    "顺利",
    "旅行",
    "平安",
    "祝福",
    "祝你",
    "天天",
    "开心",
    "身体",
    "健康",
    "取得",
];

/// Two-character and longer words that stand beside each other too often to be cut otherwise.
const MORE_WORDS: [&str; 14] = [
    "好",
    "成绩",
    "一路",
    "玩得",
    "高兴",
    "给",
    "写",
    "一句",
    "的",
    "时候",
    "说",
    "什么",
    "好成绩",
    "一",
];

/// The tokenizer of the family.
pub fn tokenizer() -> Result<TextTokenizer> {
    let words: Vec<&str> = WORDS.iter().chain(&MORE_WORDS).copied().collect();
    builtin_tokenizer::of_words(&words)
}
