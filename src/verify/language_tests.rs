//! The tables of [`super`]: words, languages and shares, counted by hand.

use super::*;

fn language(code: &str) -> Language {
    Language::parse(code).unwrap()
}

#[test]
fn words_are_counted_by_hand() {
    // text, words, of them English, of them Chinese
    let cases = [
        ("Let me think about this.", 5, 5, 0),
        ("让我想想", 4, 0, 4),
        ("Let me 先计算 the sum", 7, 4, 3),
        ("first $x+1=2$ then", 2, 2, 0),
        ("so 12 + 3 = 15", 1, 1, 0),
        (r"we get \frac{a}{b} and \(x\)", 3, 3, 0),
        ("the `for` loop", 2, 2, 0),
        ("don't use x_max or 2nd", 3, 3, 0),
        ("设点AB的中点为M", 6, 0, 6),
        ("", 0, 0, 0),
        ("12 + 3 = 15", 0, 0, 0),
        // the text in a formula counts, its letters do not
        (r"$\text{则} x$ is", 2, 1, 1),
        // two alphabets in a word
        ("the \u{430}nswer is", 3, 2, 0),
    ];
    for (text, num_words, english, chinese) in cases {
        for (code, num_target) in [("en", english), ("zh", chinese)] {
            let expected = Consistency {
                num_words,
                num_target,
            };
            assert_eq!(
                consistency(text, language(code)),
                expected,
                "{code} {text:?}"
            );
        }
    }
}

const TEXTS: [(&str, &str); 15] = [
    (
        "en",
        "Okay, so I need to find how many apples are left. Wait, that does not look right, let me check it again.",
    ),
    (
        "es",
        "Bueno, primero necesito saber cuántas manzanas quedan. Espera, eso no parece correcto, voy a revisarlo otra vez.",
    ),
    (
        "fr",
        "Bon, je dois d'abord trouver combien de pommes il reste. Attends, cela ne semble pas correct, vérifions encore.",
    ),
    (
        "de",
        "Also, zuerst muss ich wissen, wie viele Äpfel noch da sind. Moment, das sieht nicht richtig aus, ich prüfe es.",
    ),
    (
        "it",
        "Allora, prima devo capire quante mele restano. Aspetta, non sembra giusto, dovrei controllare di nuovo il passo.",
    ),
    (
        "pt",
        "Bem, primeiro preciso saber quantas maçãs ainda restam. Espera, isso não parece certo, vou verificar novamente.",
    ),
    (
        "nl",
        "Goed, eerst moet ik uitzoeken hoeveel appels er nog zijn. Wacht, dat klopt niet, ik moet het nog eens nakijken.",
    ),
    (
        "tr",
        "Tamam, önce kaç elma kaldığını bulmam gerekiyor. Bekle, bu doğru görünmüyor, tekrar kontrol etmeliyim.",
    ),
    (
        "vi",
        "Được rồi, trước tiên tôi cần tìm xem còn lại bao nhiêu quả táo. Khoan đã, điều đó có vẻ không đúng.",
    ),
    (
        "ru",
        "Хорошо, сначала нужно выяснить, сколько яблок осталось. Подождите, это выглядит неправильно, проверю ещё раз.",
    ),
    (
        "ar",
        "حسنا، أولا أحتاج إلى معرفة عدد التفاحات المتبقية. انتظر، هذا لا يبدو صحيحا، سأتحقق مرة أخرى.",
    ),
    (
        "hi",
        "ठीक है, पहले मुझे पता करना है कि कितने सेब बचे हैं। रुको, यह सही नहीं लगता, मैं फिर से जाँचता हूँ।",
    ),
    (
        "ja",
        "まず、りんごがいくつ残っているかを求める必要があります。待って、これは正しくないようです。もう一度確認します。",
    ),
    (
        "ko",
        "좋아, 먼저 사과가 몇 개 남았는지 알아내야 한다. 잠깐, 이것은 맞지 않는 것 같으니 다시 확인하자.",
    ),
    (
        "zh",
        "好的，首先我需要求出还剩多少个苹果。等等，这看起来不对，让我再检查一遍。",
    ),
];

#[test]
fn languages_are_told_apart() {
    for (code, text) in TEXTS {
        assert_eq!(Language::of(text), Some(language(code)), "{code}");
        for (other, _) in TEXTS {
            let share = consistency(text, language(other)).share();
            if other == code {
                assert!(share > 0.9, "{code}: {share}");
            } else {
                assert!(share < 0.2, "{code} as {other}: {share}");
            }
        }
    }
    assert_eq!(Language::of("2 + 2 = $x$"), None);
    assert_eq!(Language::of("Hi"), Some(language("en")));
}

#[test]
fn half_of_two_languages_is_about_half() {
    let text = format!("{} {}", TEXTS[0].1, TEXTS[1].1);
    for code in ["en", "es"] {
        let share = consistency(&text, language(code)).share();
        assert!((0.4..0.65).contains(&share), "{code} {share}");
    }
}

#[test]
fn names_of_languages() {
    for name in ["en", "EN", "eng", "English", "en-US"] {
        assert_eq!(Language::parse(name).unwrap().code(), "en");
    }
    let error = Language::parse("tlh").unwrap_err();
    assert_eq!(error.to_string(), "unknown language `tlh`");
    assert!(error.hint().unwrap().contains("zh"));
}

#[test]
fn verdicts_are_about_the_reasoning() {
    let english = language("en");
    let cases = [
        (
            "<think>We add two and two.</think>答案是四",
            Outcome::Correct,
            1.0,
        ),
        ("We add two and two.</think>答案是四", Outcome::Correct, 1.0),
        (
            "<think>我们把二加二</think>The answer is four.",
            Outcome::Wrong,
            0.0,
        ),
        (
            "<think></think>The answer is four.",
            Outcome::Unparsable,
            0.0,
        ),
    ];
    for (text, outcome, expected) in cases {
        let (verdict, share) = check(text, english);
        assert_eq!((verdict.outcome, share), (outcome, expected), "{text:?}");
    }
}

#[test]
fn long_texts_take_their_length() {
    for text in [
        "ab ".repeat(200_000),
        "字".repeat(300_000),
        "a\u{301}".repeat(200_000),
        "é".repeat(500_000),
    ] {
        assert!(consistency(&text, language("en")).num_words <= text.len());
    }
}
