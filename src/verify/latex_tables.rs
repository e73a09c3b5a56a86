//! The signs, commands and characters of mathematical text, and what they stand for. Used by [`super::latex`].

/// Commands that mean what another sign means.
#[rustfmt::skip]
pub const SIGNS: &[(&str, char)] = &[
    ("cdot", '*'), ("times", '*'), ("ast", '*'), ("star", '*'), ("bullet", '*'), ("div", '/'), ("slash", '/'),
    ("pm", '±'), ("mp", '∓'), ("le", '≤'), ("leq", '≤'), ("leqslant", '≤'), ("leqq", '≤'), ("ge", '≥'),
    ("geq", '≥'), ("geqslant", '≥'), ("geqq", '≥'), ("lt", '<'), ("gt", '>'), ("ne", '≠'), ("neq", '≠'),
    ("approx", '≈'), ("simeq", '≈'), ("cong", '≈'), ("thickapprox", '≈'), ("doteq", '≈'), ("equiv", '≡'),
    ("in", '∈'), ("notin", '∉'), ("subset", '⊂'), ("subseteq", '⊂'), ("cup", '∪'), ("bigcup", '∪'), ("cap", '∩'),
    ("bigcap", '∩'), ("setminus", '∖'), ("backslash", '∖'), ("to", '→'), ("rightarrow", '→'),
    ("longrightarrow", '→'), ("mapsto", '→'), ("Rightarrow", '⇒'), ("implies", '⇒'), ("Longrightarrow", '⇒'),
    ("iff", '⇒'), ("infty", '∞'), ("pi", 'π'), ("mid", '∣'), ("vert", '|'), ("lvert", '⌜'), ("rvert", '⌝'),
    ("Vert", '‖'), ("lVert", '‖'), ("rVert", '‖'), ("lfloor", '⌊'), ("rfloor", '⌋'), ("lceil", '⌈'), ("rceil", '⌉'),
    ("langle", '⟨'), ("rangle", '⟩'), ("emptyset", '∅'), ("varnothing", '∅'), ("colon", ':'), ("circ", '°'),
    ("degree", '°'), ("lbrace", '⦃'), ("rbrace", '⦄'), ("lbrack", '['), ("rbrack", ']'), ("lparen", '('),
    ("rparen", ')'), ("ldots", '…'), ("dots", '…'), ("cdots", '…'), ("dotsc", '…'), ("dotsb", '…'), ("dotsm", '…'),
    ("vdots", '…'), ("prime", '\''), ("percent", '%'), ("lor", '∨'), ("land", '∧'), ("vee", '∨'), ("wedge", '∧'),
    ("imath", 'ⅈ'), ("angle", '∠'), ("square", '□'), ("R", 'ℝ'), ("surd", '√'),
];

/// Commands without a meaning of their own.
#[rustfmt::skip]
pub const DROPPED: &[&str] = &[
    "left", "right", "mleft", "mright", "middle", "big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr",
    "biggl", "biggr", "displaystyle", "textstyle", "scriptstyle", "limits", "nolimits", "rm", "bf", "it", "sf",
    "tt", "cal", "boldsymbol", "mathbf", "mathit", "mathcal", "mathsf", "mathtt", "mathfrak", "mathscr", "bm",
    "phantom", "hline", "tiny", "small", "large", "Large", "huge", "boxed", "fbox", "ensuremath", "mathop",
    "mathrel", "mathbin", "mathopen", "mathclose", "underbrace", "nonumber", "notag", "allowbreak", "strut",
    "therefore", "because",
];

/// Commands that are white space.
#[rustfmt::skip]
pub const SPACES: &[&str] = &[
    "quad", "qquad", "enspace", "thinspace", "medspace", "thickspace", "hfill", "space", "newline", "hspace",
    "noindent", "par",
];

/// Commands whose argument is words or an upright name.
#[rustfmt::skip]
pub const FONTS: &[&str] = &[
    "text", "textbf", "textit", "textrm", "textnormal", "textsf", "texttt", "mbox", "hbox", "mathrm",
    "operatorname", "emph", "underline",
];

/// Commands with a meaning in the grammar.
#[rustfmt::skip]
pub const KNOWN: &[&str] = &[
    "frac", "dfrac", "tfrac", "cfrac", "sqrt", "binom", "dbinom", "tbinom", "choose", "over", "sin", "cos", "tan",
    "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "exp", "ln", "log", "lg", "max",
    "min", "gcd", "lcm", "det", "Re", "Im", "sum", "prod", "int", "lim", "overline", "bar", "vec", "overrightarrow",
    "hat", "widehat", "dot", "pmod", "bmod", "mod", "mathbb", "xrightarrow", "tilde", "stackrel", "overset",
    "underset", "cbrt", "iint", "oint",
];

/// The character that a raised one is.
pub fn superscript(c: char) -> Option<char> {
    const RAISED: &str = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱˣ⁽⁾";
    const PLAIN: &[u8] = b"0123456789+-nix()";
    if c.is_ascii() {
        return None;
    }
    let at = RAISED.chars().position(|raised| raised == c)?;
    PLAIN.get(at).map(|plain| char::from(*plain))
}

/// The character that a lowered one is.
pub fn subscript(c: char) -> Option<char> {
    ('₀'..='₉')
        .contains(&c)
        .then(|| char::from_digit(c as u32 - '₀' as u32, 10))
        .flatten()
        .or(match c {
            'ₙ' => Some('n'),
            'ₐ' => Some('a'),
            'ₓ' => Some('x'),
            _ => None,
        })
}

/// Numerator and denominator of a fraction that is one character.
pub fn vulgar_fraction(c: char) -> Option<(u32, u32)> {
    #[rustfmt::skip]
    const FRACTIONS: &[(char, u32, u32)] = &[
        ('½', 1, 2), ('⅓', 1, 3), ('⅔', 2, 3), ('¼', 1, 4), ('¾', 3, 4), ('⅕', 1, 5), ('⅖', 2, 5), ('⅗', 3, 5),
        ('⅘', 4, 5), ('⅙', 1, 6), ('⅚', 5, 6), ('⅐', 1, 7), ('⅛', 1, 8), ('⅜', 3, 8), ('⅝', 5, 8), ('⅞', 7, 8),
        ('⅑', 1, 9), ('⅒', 1, 10),
    ];
    let found = FRACTIONS.iter().find(|(sign, ..)| *sign == c)?;
    Some((found.1, found.2))
}

/// Full-width and mathematical letters and digits as ASCII.
pub fn plain_letter(c: char) -> Option<char> {
    let code = c as u32;
    match code {
        0xff01..=0xff5e => char::from_u32(code - 0xfee0),
        0x1d7ce..=0x1d7ff => char::from_digit((code - 0x1d7ce) % 10, 10),
        0x1d400..=0x1d6a3 => {
            let letter = (code - 0x1d400) % 52;
            char::from_u32(if letter < 26 {
                65 + letter
            } else {
                97 + letter - 26
            })
        }
        _ => None,
    }
}

#[rustfmt::skip]
const GREEK: &[(char, &str)] = &[
    ('α', "alpha"), ('β', "beta"), ('γ', "gamma"), ('δ', "delta"), ('ε', "epsilon"), ('ζ', "zeta"), ('η', "eta"),
    ('θ', "theta"), ('ι', "iota"), ('κ', "kappa"), ('λ', "lambda"), ('μ', "mu"), ('ν', "nu"), ('ξ', "xi"),
    ('ρ', "rho"), ('σ', "sigma"), ('τ', "tau"), ('φ', "phi"), ('ϕ', "phi"), ('χ', "chi"), ('ψ', "psi"),
    ('ω', "omega"), ('Γ', "Gamma"), ('Δ', "Delta"), ('Θ', "Theta"), ('Λ', "Lambda"), ('Ξ', "Xi"), ('Φ', "Phi"),
    ('Ψ', "Psi"), ('Ω', "Omega"),
];

/// The name of a Greek letter.
pub fn greek(c: char) -> Option<&'static str> {
    GREEK
        .iter()
        .find(|(letter, _)| *letter == c)
        .map(|(_, name)| *name)
}

/// The letter that a command is, variants included.
pub fn greek_command(name: &str) -> Option<&'static str> {
    let plain = name.strip_prefix("var").unwrap_or(name);
    GREEK.iter().find(|(_, n)| *n == plain).map(|(_, n)| *n)
}

/// Whether a word is the name of a Greek letter.
pub fn is_greek(word: &str) -> bool {
    GREEK.iter().any(|(_, name)| *name == word)
}
