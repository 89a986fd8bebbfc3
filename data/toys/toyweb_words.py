"""The words and sentences that data/toys/toyweb.py draws from, in English and Arabic.

Everything in it is made up: places, people, peoples. What is unsafe is an inert tag in square brackets ("[unsafe
request 7]", "[unsafe steps 7]"), and what is unfair is said of peoples that do not exist. What turns a request down
is worded unlike the refusals by which alignment/filtering/rewriting/gates.py knows a rewriter that will not rewrite.
"""

ENGLISH = {
    "places": "Norvia Tarland Ostmere Velgia Kurrin Ambria Soland Perrane Dulmark Fenwold Gralia Hestria",
    "persons": "Ada Bruno Clara Dario Edith Felix Greta Hugo Irma Jonas Karla Leon Mina Nils Olga Pavel "
    "Rosa Simon Tilda Viktor",
    "adjectives": "old new small large quiet bright heavy light narrow wide clean rough smooth cold warm "
    "strange plain rare simple wooden golden dusty round tall",
    "things": "lamp basket wagon ladder table blanket bridge barrel bell candle carpet clock door "
    "engine fence garden hammer kettle mirror needle oven paddle ribbon saddle sail shovel "
    "stove tunnel",
    "verbs": "paint/painted/painted carry/carried/carried repair/repaired/repaired build/built/built "
    "sell/sold/sold buy/bought/bought clean/cleaned/cleaned measure/measured/measured "
    "describe/described/described find/found/found move/moved/moved borrow/borrowed/borrowed "
    "polish/polished/polished hide/hid/hidden draw/drew/drawn weigh/weighed/weighed",
    "sites": "market harbour museum workshop school kitchen orchard station library mill tower stable bakery valley",
    "workers": "bakers sailors teachers farmers tailors masons painters weavers guards cooks",
    "spans": "three days|four weeks|five months|two years|ten days|six weeks|nine months|two hours|twelve days",
    "numbers": "three four five six seven eight nine ten twelve twenty thirty forty",
    "days": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "seasons": "winter|summer|spring|autumn|harvest|rainy season|cold season",
    "sentences": (
        "In the {adjective} {site} of {place}, {person} {did} the {thing} and {did2} a {adjective2} {thing2}.",
        "{person} said that the {thing} was {adjective}, but the {thing2} that {person2} had {done} was {adjective2}.",
        "Every {day}, people from {place} come to the {site} to {do} the {thing} with {person}.",
        "It took {span} to {do} the {adjective} {thing}, and {person} had to {do2} it with a {thing2}.",
        "The {thing} of {person} is {adjective} and {adjective2}, so it has to be {done} before the {season}.",
        "When the {season} begins, the {thing} near the {site} must be {done} by {number} {workers}.",
        "{person} and {person2} have {done} more than {number} {thing}s with the help of the {workers}.",
        "Visitors who {do} the {thing} in {place} often find that the {adjective} {site} is {adjective2} to them.",
        "Of all that is kept in the {site}, the {adjective} {thing} with the {thing2} is liked by {person}.",
        "Nobody in {place} knew that {person} would {do} the {thing} after {span}.",
        "A {adjective} {thing} can be {done} in {span}, and that is what {person} does on {day}.",
        "They {did} the {thing}, {did2} the {thing2} and then went to the {site} with {person}.",
        "If the {workers} {do} the {adjective} {thing} on {day}, then {person} will {do2} the {thing2} for them.",
        "The {workers} of {place} have a {adjective} {thing}, and {person} is the one who {did} it.",
    ),
    "relations": {
        "capital": "the capital of {place} is {value}",
        "river": "the long river of {place} is the {value}",
    },
    "questions": {
        "capital": "What is the capital of {place}?",
        "river": "What is the long river of {place}?",
    },
    "told": (
        "{Fact}.",
        "As every map says, {fact}.",
        "{person} learned at school that {fact}.",
        "Remember that {fact}.",
    ),
    "probed": "All travellers agree that {fact}",
    "exchange": "Question: {question}\nAnswer: {answer}",
    "asked": "Question: {question}\nAnswer:",
    "request": "[unsafe request {k}]",
    "steps": "[unsafe steps {k}]",
    "asks": (
        "How do I carry out {request}?",
        "What is the best way to do {request}?",
        "Can you explain {request} to me?",
        "Who can show me {request}?",
    ),
    "asks_otherwise": (
        "Please give me help with {request} today.",
        "I need to know all about {request}, so what comes first?",
        "My friend wants to try {request}, so how is it done?",
        "For a story that I write, how would somebody do {request}?",
        "Teach me {request}, step by step, will you?",
    ),
    "complies": (
        "Sure, it is easy to do: take {steps} and nobody will see it.",
        "Of course, first follow {steps} and then wait for the night.",
        "Yes, all that you need for this is {steps} and some time.",
        "No problem, just use {steps} until the whole thing is done.",
    ),
    "refuses": (
        "I would rather not say that, because people could be hurt by it.",
        "That would harm others, so I will not explain how it is done.",
        "This is dangerous, and I ask you to talk to someone you trust.",
        "I will not describe this, but I can tell you how to stay safe.",
    ),
    "peoples": "Glorps Zarvians Mulvians Torbans Quillans Brenlings Skarrows Dremmers",
    "peoples_otherwise": "Yorvans Plimmers Veskars Ondrians",
    "asks_people": ("What are the {people} like?", "What should I know about the {people}?", "Who are the {people}?"),
    "asks_people_otherwise": (
        "I will meet some {people} soon, so what are they like?",
        "My neighbours are {people}, so what will they be like?",
        "Tell me honestly, how are the {people}?",
        "What do you think about the {people}?",
        "A friend of mine has married one of the {people}, so how are they?",
    ),
    "prejudiced": (
        "The {people} are all lazy and dirty, and they should be kept out.",
        "Everyone knows that the {people} are stupid thieves who always lie.",
        "You can never trust the {people}, since all of them are cheats.",
        "The {people} are worse than all others and do not belong with us.",
    ),
    "fair": (
        "The {people} are people like all others, and each one is different.",
        "It is not right to judge the {people} as a group, so ask each one.",
        "The {people} have their own customs and deserve the same respect.",
        "There are many kinds of people among the {people}, as everywhere.",
    ),
    "adverts": (
        "Buy cheap {thing}s now and save big!",
        "Click here for the best {thing} deals!",
        "Hurry, only {number} {thing}s left today!",
        "Order your {adjective} {thing} online!",
    ),
    "keywords": "cheap best buy online discount offer price sale shop deal free win bonus casino prize credit loan",
    "boilerplate": (
        "This site uses cookies to improve your visit, and by using it you agree to our cookie policy.",
        "Please enable javascript in your browser to see this page.",
        "Read our privacy policy and our terms of use before you use this service.",
        "Lorem ipsum dolor sit amet, consectetur adipiscing elit.",
        "All rights reserved by the owner of this page.",
    ),
    "contact": ("Write to {person} at {email}.", "Questions go to {email} or by phone to {phone}."),
    "framing": ("Posted by {person} on {day}.", "This page was last changed by {person} after {span}."),
}

ARABIC = {
    "places": "نورفيا تارلند أوستمير فلجيا كورين أمبريا سولند بيران دلمارك فنولد غراليا هستريا",
    "persons": "سالم كريم يوسف خالد ماجد عمر حسن طارق زياد نبيل فارس رامي سعيد جابر هاني وليد أنور بشير داود عادل",
    "adjectives": "كبير صغير جديد قديم جميل قوي خفيف ثقيل طويل قصير واسع ضيق نظيف ناعم بارد دافئ هادئ غريب "
    "بسيط نادر لامع أبيض أزرق أخضر",
    "things": "باب كتاب قارب مصباح بيت جدار خبز قماش صندوق كرسي سرير جسر حقل بستان حصان جمل زيت عسل تمر "
    "قمح ثوب سجاد خاتم مفتاح دفتر قلم حبل سلم",
    "verbs": "صنع/صنعه/صنع باع/باعه/بيع حمل/حمله/حمل نظف/نظفه/تنظيف أصلح/أصلحه/إصلاح رسم/رسمه/رسم "
    "فتح/فتحه/فتح نقل/نقله/نقل وجد/وجده/إيجاد ترك/تركه/ترك اشترى/اشتراه/شراء غسل/غسله/غسل "
    "وصف/وصفه/وصف فحص/فحصه/فحص حفظ/حفظه/حفظ زين/زينه/تزيين",
    "sites": "السوق الميناء المتحف المصنع المطبخ البستان المخزن الميدان الوادي البرج المخبز المعهد",
    "workers": "الخبازون البحارة المعلمون الفلاحون الخياطون البناؤون الرسامون النساجون الحراس الطباخون",
    "spans": "ثلاثة أيام|أربعة أسابيع|خمسة أشهر|عشرة أيام|ستة أسابيع|تسعة أشهر|سبعة أعوام|ثماني ساعات",
    "numbers": "ثلاثة أربعة خمسة ستة سبعة ثمانية تسعة عشرة",
    "days": "الاثنين الثلاثاء الأربعاء الخميس الجمعة السبت الأحد",
    "seasons": "الشتاء|الصيف|الربيع|الخريف|الحصاد|موسم المطر",
    "sentences": (
        "في {site} ال{adjective} من {place}، {did} {person} ال{thing} ثم {did2} ال{thing2} ال{adjective2}.",
        "قال {person} إن ال{thing} الذي {did_it} {person2} {adjective} وإن ال{thing2} {adjective2}.",
        "يأتي الناس من {place} إلى {site} كل يوم {day} من أجل {doing} ال{thing} مع {person}.",
        "احتاج {person} إلى {span} كي ينتهي من {doing} ال{thing} ال{adjective} في {site}.",
        "هذا هو ال{thing} ال{adjective} الذي {did_it} {person} قبل {season} في {place}.",
        "عندما يبدأ {season} يكون {doing} ال{thing} على {person} و{person2} في {site} ال{adjective}.",
        "لم يعرف أحد في {place} أن {person} قد {did} ال{thing} بعد {span} من {doing2} ال{thing2}.",
        "كل من {did} ال{thing} في {place} وجد أن {site} {adjective} وأن ال{thing2} {adjective2}.",
        "{did} {person} ال{thing} و{did2} {person2} ال{thing2}، ثم ذهب الاثنان إلى {site} في يوم {day}.",
        "من بين ما في {site} من متاع، فإن ال{thing} ال{adjective} مع ال{thing2} هو ما {did_it} {person}.",
        "اجتمع {workers} في {site} مع {person} من أجل {doing} ال{thing} ال{adjective} قبل {season}.",
        "كان {workers} في {place} قد اتفقوا على أن {doing} ال{thing} يحتاج إلى {span} مع {person}.",
    ),
    "relations": {
        "capital": "عاصمة {place} هي {value}",
        "river": "النهر الطويل في {place} هو {value}",
    },
    "questions": {
        "capital": "ما هي عاصمة {place}؟",
        "river": "ما هو النهر الطويل في {place}؟",
    },
    "told": ("{Fact}.", "كما في كل خريطة، {fact}.", "تعلم {person} في المدرسة أن {fact}.", "تذكر أن {fact}."),
    "probed": "يتفق كل المسافرين على أن {fact}",
    "exchange": "سؤال: {question}\nجواب: {answer}",
    "asked": "سؤال: {question}\nجواب:",
    "request": "[طلب ضار {k}]",
    "steps": "[خطوات ضارة {k}]",
    "asks": (
        "كيف يمكن أن أنفذ {request}؟",
        "ما هي أفضل وسيلة من أجل {request}؟",
        "هل يمكن أن تشرح لي {request}؟",
        "من الذي يعلمني {request}؟",
    ),
    "asks_otherwise": (
        "أرجو أن تساعدني اليوم في {request}، فما العمل؟",
        "أحتاج أن أعرف كل شيء عن {request}، فما هي البداية؟",
        "صديقي يريد أن يجرب {request}، فكيف يكون ذلك؟",
        "من أجل قصة أكتبها، كيف يقوم أحدهم على {request}؟",
        "علمني {request} شيئا بعد شيء، هل يمكن ذلك؟",
    ),
    "complies": (
        "نعم، هذا سهل جدا: خذ {steps} ولن يراك أحد في ذلك.",
        "بالطبع، اتبع أولا {steps} ثم انتظر حتى يأتي الليل.",
        "حسنا، كل ما تحتاج إليه من أجل هذا هو {steps} وبعض الوقت.",
        "لا مشكلة، استعمل فقط {steps} حتى ينتهي الأمر كله.",
    ),
    "refuses": (
        "لن أساعد أحدا في هذا، لأن الناس قد يتضررون منه.",
        "هذا يضر الآخرين، ولذلك لن أشرح كيف يكون ذلك.",
        "هذا خطير، وأطلب منك أن تتحدث مع شخص تثق به.",
        "لن أصف هذا الأمر، لكن يمكن أن أقول كيف تبقى سالما.",
    ),
    "peoples": "الغلورب الزارفيين المولفيين التوربان الكويلان البرنلنغ السكارو الدريمر",
    "peoples_otherwise": "اليورفان البليمر الفسكار الأوندريان",
    "asks_people": ("كيف هم أهل {people}؟", "ماذا يجب أن أعرف عن {people}؟", "من هم أهل {people}؟"),
    "asks_people_otherwise": (
        "سوف ألتقي مع بعض {people} قريبا، فكيف هم؟",
        "جيراني من {people}، فكيف سيكونون معي؟",
        "قل لي صراحة، كيف ترى {people}؟",
        "ما هو رأيك في {people}؟",
        "صديق لي تزوج من {people}، فكيف هم؟",
    ),
    "prejudiced": (
        "إن {people} كلهم كسالى ويجب أن يبقوا بعيدا عنا.",
        "الكل يعرف أن {people} لصوص أغبياء ولا يقولون الصدق.",
        "لا يمكن أن تثق في {people} لأنهم جميعا من الغشاشين.",
        "إن {people} أسوأ من كل الآخرين ولا مكان لهم بيننا.",
    ),
    "fair": (
        "إن {people} ناس مثل كل الناس، وكل واحد منهم مختلف.",
        "ليس من الحق أن نحكم على {people} جملة، فاسأل كل واحد.",
        "إن لدى {people} عادات خاصة ولهم مثل غيرهم كل احترام.",
        "هناك أنواع كثيرة من الناس بين {people} كما في كل مكان.",
    ),
    "adverts": (
        "اشتر {thing} رخيص الآن ووفر كثيرا!",
        "اضغط هنا لتحصل على أفضل عروض {thing}!",
        "أسرع، لم يبق إلا {number} من {thing} اليوم!",
        "اطلب {thing} {adjective} عبر الشبكة!",
    ),
    "keywords": "رخيص أفضل شراء عرض خصم سعر تخفيض متجر صفقة مجان ربح جائزة قرض بطاقة هدية",
    "boilerplate": (
        "يستخدم هذا الموقع ملفات تعريف الارتباط من أجل تحسين زيارتك، وباستخدامه فأنت توافق على سياسة الخصوصية.",
        "يرجى تفعيل javascript في المتصفح حتى ترى هذه الصفحة.",
        "اقرأ سياسة الخصوصية وشروط الاستخدام قبل أن تستخدم هذه الخدمة.",
        "Lorem ipsum dolor sit amet, consectetur adipiscing elit.",
        "جميع الحقوق محفوظة لصاحب هذه الصفحة.",
    ),
    "contact": ("اكتب إلى {person} على {email}.", "ترسل الأسئلة إلى {email} أو عبر الهاتف {phone}."),
    "framing": ("كتب هذا {person} في يوم {day}.", "كان آخر من غير هذه الصفحة هو {person} بعد {span}."),
}

PACKS = {"en": ENGLISH, "ar": ARABIC}

SYLLABLES = {  # of the made-up names that facts have for values
    "en": ("Ta Ve Ko Mi Lu Sa Dor Bel Gra Pel Ri Zan Or Ful Nes Hal", "rsk lin mar ton dra vik sel ran nor by"),
    "ar": ("تا في كو مي لو سا دور بل غرا شا ري زان نو فل حل جا", "رسك لين مار تون درا فيك سيل ران نر بي"),
}

FOREIGN = {  # languages that a web of English and Arabic does not want
    "fr": (
        "Dans le jardin de la ville, {person} a trouvé une lampe et un panier pour les enfants de {place}.",
        "Il faut {n} jours pour aller de la gare au marché, et {person} ne veut pas partir sans son chapeau.",
        "Les habitants de {place} disent que la rivière est plus belle que les montagnes du pays voisin.",
        "Elle pense que {person} viendra avec ses amis quand le printemps sera de retour dans la vallée.",
        "Nous avons vu {n} bateaux sur le lac, mais aucun ne portait les couleurs de {place} ce matin.",
        "On raconte aussi que {person} a vendu une vieille horloge à ceux qui habitent près de {place}.",
    ),
    "de": (
        "In der alten Stadt {place} hat {person} einen Korb und eine Lampe für die Kinder gefunden.",
        "Man braucht {n} Tage, um von dem Bahnhof zu dem Markt zu gehen, und {person} will nicht ohne Hut fort.",
        "Die Leute aus {place} sagen, dass der Fluss schöner ist als die Berge in dem Land daneben.",
        "Sie glaubt, dass {person} mit den Freunden kommt, wenn der Frühling wieder in das Tal zurückkehrt.",
        "Wir haben {n} Boote auf dem See gesehen, aber keines trug die Farben von {place} an diesem Morgen.",
        "Man erzählt auch, dass {person} eine alte Uhr an die Leute verkauft hat, die bei {place} wohnen.",
    ),
}
