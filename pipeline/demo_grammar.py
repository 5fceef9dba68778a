"""The invented clinic of the demo: its departments, what patients write to each, and the words they use.

Knows only text. A topic is a house convention ("sick notes go to records"); its templates hold ``[one|other]`` choices and
``{slot}`` references. How sites, shares and files are made out of it is ``demo.py``'s business.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

_INNERMOST = re.compile(r"\[([^\[\]]*)\]|\{(\w+)\}")


def expand(template: str, rng: random.Random) -> str:
    """The template with every ``[a|b]`` and ``{slot}`` replaced by one of its readings, innermost first."""
    while match := _INNERMOST.search(template):
        readings = match[1].split("|") if match[2] is None else SLOTS[match[2]]
        template = template[: match.start()] + rng.choice(readings) + template[match.end() :]
    return " ".join(template.split())


SLOTS: dict[str, tuple[str, ...]] = {
    "days": ("two days", "three days", "four days", "five days", "a week", "ten days", "two weeks", "three weeks", "a month"),
    "since": ("since Sunday", "since Monday", "since last night", "since yesterday", "since the weekend", "since last week", "for days now"),
    "when": ("on Monday", "on Tuesday", "on Wednesday", "on Thursday", "on Friday", "tomorrow", "next week", "on the 14th", "on the 3rd", "this afternoon"),
    "time": ("8:15", "9:00", "9:40", "10:30", "11:20", "1:45", "2:30", "3:10", "4:00", "half past four"),
    "doctor": ("Dr Patel", "Dr Okafor", "Dr Lindqvist", "Dr Moreno", "Dr Haas", "Dr Novak", "Dr Chen", "Dr Farouk", "Dr Brandt"),
    "kin": ("my mother", "my father", "my husband", "my wife", "my sister", "my brother", "my aunt", "my partner", "my grandmother"),
    "child": ("my son", "my daughter", "our youngest", "our eldest", "my little boy", "my little girl", "our toddler", "my stepson"),
    "drug": ("metformin", "lisinopril", "sertraline", "levothyroxine", "atorvastatin", "omeprazole", "amlodipine", "bisoprolol", "ramipril"),
    "joint": ("knee", "hip", "shoulder", "ankle", "wrist", "elbow"),
    "limb": ("left arm", "right arm", "left leg", "right leg", "neck", "back", "chest", "stomach", "left hand", "shin"),
    "specialist": ("a cardiologist", "a neurologist", "an eye specialist", "a skin specialist", "a kidney specialist", "a urologist", "a surgeon"),
    "job": ("warehouse", "school", "bakery", "office", "factory", "restaurant", "bus company", "post office"),
    "land": ("Kenya", "Peru", "Vietnam", "India", "Ghana", "Thailand", "Brazil", "Tanzania", "Cambodia"),
    "amount": ("$45", "$80", "$120", "$150", "$212", "$310", "$340", "$460", "$95"),
    "place": ("Springfield", "Ashford", "Newport", "Weston", "Granville", "Kingston", "Milton", "Harwich"),
    "again": ("again", "once more", "these days", "lately", "recently", "this week"),
}


@dataclass(frozen=True)
class Topic:
    """One house convention: what such a message can say, as templates."""

    name: str
    templates: tuple[str, ...]


TOPICS: dict[str, tuple[Topic, ...]] = {
    "front_desk": (
        Topic("booking", (
            "[Could I|Can I|I'd like to] [come in|be seen] {when} [around|at about] {time}?",
            "[Is there|Have you] an opening with {doctor} [{when}|before the holidays|in the early morning]?",
            "I need [a slot|a time|an appointment] for [{kin}|{child}|myself], [any day|{when}] [after work|before noon|after {time}] [suits us|would do].",
        )),
        Topic("moving", (
            "I [can't make|won't make|have to miss] my {time} visit {when}, [can we move it|please give me another day|can it be later]?",
            "Please [cancel|call off] [{kin}'s|{child}'s|my] appointment {when}, [something came up|we are away|the car broke down].",
            "[Any chance of|Is there any way of] swapping my {time} with {doctor} for [a later day|{when}]?",
        )),
        Topic("late", (
            "[Stuck in traffic|The bus is delayed|My train is late], I'll be [ten|fifteen|twenty] minutes [behind|late] for {time}.",
            "We are [still on the motorway|looking for a taxi|at the station], will {doctor} still see us if we arrive after {time}?",
        )),
        Topic("interpreter", (
            "[{kin}|My neighbour] speaks only [Polish|Arabic|Spanish|Somali|Urdu|Farsi], can someone translate {when}?",
            "I am deaf, [please have|could there be] a sign language interpreter [{when}|at {time}|for my visit].",
            "[{kin}|A friend] understands little English, [may I come along to translate|do you have someone who speaks [Turkish|Tamil|Dari|Greek]]?",
        )),
        Topic("contact details", (
            "We moved to [Elm Street|Mill Lane|Station Road|Park Avenue|Church Hill] [{when}|last week], please note the new address.",
            "My [mobile|phone] number [has changed|is different now], it ends in [41|27|88|09|63|15].",
            "I got married and my surname is now [Baker|Jansen|Ruiz|Khan|Olsen], please use that one.",
        )),
        Topic("lost property", (
            "I [left|forgot] my [umbrella|scarf|glasses|jacket|gloves|hat] in the waiting room {when}, did anyone hand it in?",
            "Has anybody found a [blue|black|red|grey] [backpack|wallet|purse|walking stick|teddy bear] on your chairs?",
        )),
        Topic("access", (
            "Where [do I park|can we park|is the car park] when I come [{when}|at {time}]? The [side street|square] is always full.",
            "{kin} [is in a wheelchair|cannot climb stairs|uses a scooter], is there a [ramp|lift] at the [back|main|side] entrance?",
        )),
        Topic("choice of doctor", (
            "I would [rather see|feel better with] a [woman|female doctor|lady doctor] [{when}|from now on|next time].",
            "Is {doctor} [taking new patients|still working here|back from leave]? [We just moved here|I'd like to join|{kin} wants to switch].",
        )),
    ),
    "nurse_line": (
        Topic("fever", (
            "[{child}|{kin}|I] had a temperature of [38.5|39|39.4|101|102] {since} and [keeps coughing|is very hot|is shivering].",
            "A [dry|wet|barking] cough {since} and now [a fever|chills|a sore throat], should I [worry|stay in bed|do something]?",
            "[Throwing up|Diarrhoea|Vomiting] {since}, [hardly any water stays down|feeling weak|could it be a bug]?",
        )),
        Topic("rash", (
            "[Red|Itchy|Blotchy] spots on [{child}'s|{kin}'s|my] {limb} {since}, they [are spreading|itch at night|feel hot].",
            "There is a [ring|patch|bump] on my {limb} that [burns|oozes|peels] [{again}|{since}], what should I put on it?",
        )),
        Topic("result questions", (
            "My [cholesterol|sugar|ferritin|potassium|white cell count] [came back|shows as] [high|low|flagged in red], is that [bad|dangerous|something to fear]?",
            "[I see|The portal shows] a [TSH of 6|haemoglobin of 10|creatinine of 1.6|CRP of 22], what does [it|that number] mean?",
            "The [biopsy|smear|thyroid|kidney|liver] result [is in|was posted] and I don't understand [a word|the starred value|the remark].",
        )),
        Topic("bites", (
            "A [dog|cat|neighbour's dog|hamster|horse] bit [{child}|{kin}|me] on the {limb} [{since}|an hour ago|this morning].",
            "I pulled a tick off [{child}'s|my|{kin}'s] {limb} and [part of it is still in|there is a red ring|the head stayed in].",
            "Stung by a [wasp|bee|hornet|jellyfish] on the {limb}, it is [swelling|throbbing|twice the size] {again}.",
        )),
        Topic("wounds", (
            "The [stitches|staples] on my {limb} [are weeping|look red|came loose], who takes them out?",
            "[{kin}'s|My] [cut|wound|burn] on the {limb} [smells|is yellow|is still open] after {days}, how often do we change the dressing?",
        )),
        Topic("side effects", (
            "{since} I started {drug} I feel [sick|dizzy|shaky|swollen|so tired], is this from the tablets?",
            "[{kin}|I] took the first {drug} and got [a swollen lip|cramps|a pounding heart|a dry mouth], stop or go on?",
        )),
        Topic("home readings", (
            "My readings at home were [150 over 95|162 over 100|148 over 92|90 over 55] [{when}|all week|this morning].",
            "[Top number|Upper value] [158|171|165|149] [again|after coffee|after resting], how high is too high?",
        )),
    ),
    "pharmacy": (
        Topic("refills", (
            "I [am down to|have only] [two|three|four|five] {drug} [tablets|pills] left, please [renew|refill] them.",
            "Please [send|order] another [month|three months|box] of {drug} [for {kin}|before {when}|to {place}].",
            "The {drug} [is empty|runs out {when}|is finished], [repeat please|can I get more|same strength as before].",
        )),
        Topic("dosing", (
            "I forgot my {drug} [{when}|last night|this morning], [take two|do I double up|skip it] now?",
            "Should {drug} be taken [with food|before bed|on an empty stomach|in the morning]? [The leaflet is unclear|{kin} says otherwise].",
        )),
        Topic("travel", (
            "[We fly|I'm flying|Our group goes] to {land} [{when}|in {days}|in spring], which jabs [do we need|are advised]?",
            "[Honeymoon|Work trip|Backpacking] in {land} {when}, do I need [yellow fever|typhoid|hepatitis|malaria] protection?",
            "[{kin}|{child}] and I are off to {land}, what [against mosquitoes|for the stomach|vaccines] should we [have|bring]?",
        )),
        Topic("sharps", (
            "My [yellow box|bin] of used needles is full, where [do I drop it|can I hand it in|does it go]?",
            "What do I do with [{kin}'s|my] old [injection pens|syringes|lancets|needles]? [The rubbish men won't take them|I don't dare bin them].",
        )),
        Topic("smoking", (
            "I want to [quit|give up] [cigarettes|smoking|vaping], are there [patches|gums|sprays] that help?",
            "[Smoke-free|No cigarette] for {days} but the [cravings|urges] are [awful|back], can I have stronger [patches|gum|lozenges]?",
        )),
        Topic("look different", (
            "My {drug} [is white now|looks different|came in another box|is round instead of oval], is it the same?",
            "I was given [another brand|a generic] instead of {drug}, [does it work alike|is that safe|why]?",
        )),
        Topic("combining", (
            "Is it all right to [have wine|drink grapefruit juice|take ibuprofen|take St John's wort|use a cold remedy] [with|while on] {drug}?",
            "Can I [mix|combine] {drug} with [vitamin D|iron|melatonin|herbal tea|antacids|turmeric]?",
        )),
        Topic("swallowing tablets", (
            "[{child}|{kin}] can't [swallow|get down] the [big capsules|tablets], is there a [syrup|liquid|powder] instead?",
            "May {drug} be [crushed|cut in half|dissolved in juice]? [{kin}|{child}] [gags on it|spits it out].",
        )),
    ),
    "laboratory": (
        Topic("fasting", (
            "[Must I|Do I] [skip breakfast|stop eating|go without coffee] before they [draw blood|take my blood] {when}?",
            "How many hours [without food|fasting] before the [sugar|cholesterol|glucose] test at {time}?",
        )),
        Topic("blood draw", (
            "[When|Until what time] can I [drop by|walk in] to have my blood [taken|drawn] {when}?",
            "{doctor} ordered [bloods|a blood count|an iron test|thyroid bloods], do I just [turn up|walk in] [{when}|at {time}]?",
        )),
        Topic("stool kit", (
            "The [bowel screening|stool] kit [arrived|came] [{when}|in the post], how [do I send it back|long does it keep]?",
            "I [spilled|lost] the [tube|little stick] of the [stool|bowel] kit, [can I get another|please send a new one].",
        )),
        Topic("work screening", (
            "My new [{job}|employer] wants [a drug screen|a drug test|a urine screen] before I start {when}.",
            "I start at a {job} {when} and must prove I am [clean|drug free|immune to hepatitis B].",
        )),
        Topic("allergy", (
            "I [sneeze|wheeze|itch] whenever I [pet a cat|mow the lawn|eat peanuts|clean the attic], can you find out what I react to?",
            "[{child}|{kin}] [swells up|gets hives] from [strawberries|nuts|shrimp|milk|feathers], can we get [tested|a prick test]?",
        )),
        Topic("needle fear", (
            "I [faint|pass out|panic] when I see a needle, can I [lie down|bring someone|have numbing cream] {when}?",
            "[{child}|{kin}] is [terrified of|hard to stick with] needles, last time it took [three|four|five] tries to find a vein.",
        )),
        Topic("collections", (
            "I'm [doing|starting] the [24-hour|all-day] urine [jug|container], does it [go in the fridge|start at {time}]?",
            "Before the [breath test|balloon test], must I stop {drug} for {days}?",
            "How much [pee|urine] goes in the [cup|little pot] and [by when must I hand it in|is {time} too late]?",
        )),
    ),
    "imaging": (
        Topic("mri", (
            "How long [will I lie in the tube|does the MRI take|am I in the machine] {when}?",
            "[May I eat|Can I drink|Should I come early] before the [CT|MRI|ultrasound] of my {limb} at {time}?",
        )),
        Topic("x-ray", (
            "{doctor} wants [an x-ray|a picture] of my {joint}, [do I need a time|can I walk in {when}|where do I go]?",
            "Has anyone looked at the [x-ray|film] of [{child}'s|{kin}'s|my] {joint} [from {when}|yet]?",
        )),
        Topic("metal", (
            "I have [a metal plate in my {joint}|screws in my {joint}|a stent|a shrapnel splinter|a copper coil], can I go in the magnet?",
            "[Is|Would] my [new tattoo|nose ring|dental bridge|steel pin] [a problem|dangerous] near the magnet {when}?",
        )),
        Topic("tight spaces", (
            "I get [claustrophobic|a panic] in [tight|closed|narrow] spaces, can I [have a sedative|keep my head out] {when}?",
            "Is there an open [machine|scanner]? [{kin}|I] couldn't [stand|bear] the [narrow tunnel|tube] last time.",
        )),
        Topic("breast screening", (
            "I got [a letter|an invitation] for [my mammogram|breast screening], [is {when} possible|I'm 52, is it every two years|does it hurt]?",
            "They called [me|{kin}] back for [another mammogram|more breast views], [why|is that usual|I'm scared].",
        )),
        Topic("picture discs", (
            "Can I have my pictures on a [disc|CD|USB stick]? [The surgeon in {place} wants them|I see {specialist} {when}].",
            "The [disc|CD] [{kin}|I] got [won't open|is blank|asks for a password], please [burn|make] a new one.",
        )),
        Topic("heart recorder", (
            "The [stick-on|taped-on] [heart recorder|heart monitor] has been on for [24 hours|{days}], where do I bring it to be read out?",
            "The [recorder|monitor] with the [three|five] wires [came off|itches|blinks red], {days} [too early|are not over yet].",
        )),
        Topic("bone density", (
            "I broke my wrist [twice|from nothing], [{kin}|my aunt] had thin bones, can mine be measured?",
            "My last bone density was [in 2019|four years ago|before the menopause], [am I due|is it time] [again|{when}]?",
        )),
    ),
    "billing": (
        Topic("wrong charge", (
            "I was charged {amount} [twice|two times] for [the same visit|{when}|one visit with {doctor}].",
            "Why [do I owe|am I asked for] {amount}? [My plan covers this|I already paid|I never saw {doctor}].",
        )),
        Topic("instalments", (
            "I can't pay {amount} [at once|in one go|this month], could I [pay monthly|spread it|have more time]?",
            "[Lost my job|Money is tight|I am on a pension], is there [help|a discount] with the {amount}?",
        )),
        Topic("new insurer", (
            "I [changed|switched] [insurers|health plans] [{when}|this month], where do I [send|upload] the new card?",
            "[Do you take|Are you in network with] [Blue Oak|Unity Care|Sunrise Health|Medway Plus]? My [job|plan] changes {when}.",
        )),
        Topic("estimate", (
            "What will [a colonoscopy|cataract surgery|a skin check|physio|mole removal|a vasectomy] [cost me|set me back] without cover?",
            "[Roughly how much|What] is [an MRI|a visit|a flu jab|a health check] if I pay [cash|myself]?",
        )),
        Topic("no-show fee", (
            "I got a {amount} [fine|fee|penalty] for missing {when}, but I [rang ahead|was in hospital|cancelled in time].",
            "[Please waive|Must I really pay] the [missed visit|no-show] fee, [{child} was ill|my car broke down|the bus never came].",
        )),
        Topic("tax", (
            "I need a [list|summary|statement] of everything [I|we|{kin}] paid [last year|in 2023|in 2024] for the tax return.",
            "My [accountant|tax adviser] asks for [receipts|proof of payment] from [January|last year|spring] [on|until now].",
        )),
        Topic("gym refund", (
            "My plan [gives back|refunds] part of the [gym|swimming|yoga|fitness] [fees|membership], who [signs|stamps] the slip?",
            "Where do I hand in the [voucher|coupon] for the [running club|gym|pool|yoga course]?",
        )),
        Topic("collectors", (
            "A [collection agency|debt collector] [wrote|rang|called] me about {amount} from [you|your clinic|{when}].",
            "I got a [final notice|last reminder|red letter] over {amount}, but I [paid|settled it] {when}.",
        )),
    ),
    "records": (
        Topic("copies", (
            "[Please send me|I want|Could I have] a copy of [my notes|{kin}'s chart|my file|everything you hold on me] [since 2015|from {when}|].",
            "I need [the report|the letter|the notes] of my visit [with {doctor}|{when}] [on paper|as a PDF].",
        )),
        Topic("transfer", (
            "I am moving to {place}, please [send|forward] my [file|history] to the [new clinic|new doctor] there.",
            "[{kin}|{child}] has a new [family doctor|practice] in {place}, who [asks for|needs] the [old notes|history].",
        )),
        Topic("sick notes", (
            "I'm [ill|in bed|unwell] {since}, my boss at the {job} [wants|needs] a [sick note|certificate].",
            "My sick note [ends|runs out] {when} and I can't [go back to|face] the {job} yet, [extend it please|can you prolong it]?",
            "The {job} says I need a [paper|line|note] that I am [fit again|off work for {days}|allowed light duty].",
        )),
        Topic("login", (
            "I [forgot|lost] my password and the [reset|code] [email|text] never [comes|arrives].",
            "The website [locks me out|says account locked|won't let me in] [{again}|since the update], I'm writing from {kin}'s account.",
        )),
        Topic("wrong entry", (
            "It says [I smoke|I had a stroke|I'm diabetic|I'm allergic to penicillin|I am 84] in my chart, that is [wrong|not true|a mix-up].",
            "[My date of birth|The blood group|{kin}'s middle name|The listed operation] is [wrong|not right] in what you have, please correct it.",
        )),
        Topic("forms", (
            "My [life insurer|pension fund|mortgage company] sent a [form|questionnaire] that {doctor} has to fill in.",
            "The [driving licence|disability|firearms|taxi licence] office [wants|needs] a medical form [signed|filled in] by {when}.",
            "My [lawyer|solicitor] asks what was [found|written] after the accident [{when}|in {place}].",
        )),
        Topic("permission", (
            "I want [{kin}|my neighbour|my carer] to be able to [read|see] my messages and [speak for me|ask about me].",
            "[{child}|Our eldest] turns [sixteen|eighteen] {when}, [can I still see the account|do I lose access]?",
            "Please [no longer|don't] tell [my ex-husband|my ex-wife|{kin}|my parents] anything about my [health|visits].",
        )),
    ),
    "care_coordination": (
        Topic("referrals", (
            "{doctor} said I should see {specialist}, has [that|the letter] gone out?",
            "I [haven't heard|still hear nothing] from {specialist} after {days}, [who arranges it|can you chase them]?",
        )),
        Topic("after hospital", (
            "[{kin}|My neighbour] [comes home|was sent home] from hospital {when}, [what now|who checks on her|who follows up]?",
            "I was discharged {when} after [a stroke|heart surgery|a hip operation|pneumonia] and [have no plan|got no papers|live alone].",
        )),
        Topic("prior approval", (
            "My insurer [won't cover|rejected|refuses] {drug} [unless|until] {doctor} [asks for approval|justifies it|sends them a reason].",
            "The [operation|infusion|brace|injection] [needs|is waiting for] [pre-approval|prior authorisation|the insurer's go-ahead], is it [through|filed]?",
        )),
        Topic("rides", (
            "[{kin}|I] [can't drive|have no car|must not drive] after the procedure, can someone [fetch|pick up|drive] us {when}?",
            "Is there a [shuttle|volunteer driver|patient taxi] from {place} for [my visits|dialysis|{time}]?",
        )),
        Topic("home equipment", (
            "{kin} needs a [walker|shower chair|hospital bed|commode|raised toilet seat|stair rail] at home, how do we get one?",
            "The [rented bed|wheelchair|walker] [is broken|can go back|hasn't come], who [collects|repairs|brings] it?",
        )),
        Topic("home help", (
            "{kin} can't [cook|wash|dress] alone any more, who [could come in daily|brings meals|helps at home]?",
            "We are looking for a [nursing home|care home|day centre] near {place} for {kin}, where do we [start|apply]?",
        )),
        Topic("second opinion", (
            "[{doctor}|The hospital] wants to operate on my {joint}, I'd like [someone else's view|a second opinion] first.",
            "Before [chemo|surgery|the transplant] {kin} wants [another expert|a different team] to look at it, can you set that up?",
        )),
    ),
    "rehabilitation": (
        Topic("exercises", (
            "How often do I do the [bends|stretches|exercises] after my new {joint}? It [still swells|is stiff {again}].",
            "Is it normal that my {joint} [hurts|clicks|swells] [after|during] the [exercise sheet|band exercises|step-ups]?",
        )),
        Topic("stiff back", (
            "I [put my back out|twisted my back] [lifting boxes|in the garden|at the {job}] and can [hardly bend|barely get up].",
            "My neck [is stiff|seizes up] [{since}|after driving|every morning], would [massage|heat|stretching] help?",
        )),
        Topic("dizziness", (
            "The room spins when I [turn over in bed|look up|bend down], {since}.",
            "[{kin}|I] [gets|feel] giddy and [unsteady|off balance] [when getting up|on stairs|{again}], it's like being on a boat.",
        )),
        Topic("leaking", (
            "I leak when I [laugh|sneeze|jump|run|cough] [since the birth|{again}|since the operation], it is embarrassing.",
            "I [dash|rush] to the toilet [every hour|ten times a day] and don't always make it in time.",
        )),
        Topic("jaw", (
            "My jaw [clicks|locks|aches] when I [chew|yawn|open wide] {again}.",
            "I grind my teeth at night and wake with a sore jaw [{again}|{since}|every morning].",
        )),
        Topic("workstation", (
            "My [wrists|shoulders|forearms] ache from [typing|the mouse|the screen] all day, [how should I sit|can someone check my desk]?",
            "Numb fingers after [hours at the keyboard|typing|knitting], what [chair height|desk|mouse] is right?",
        )),
        Topic("supports", (
            "My [insoles|arch supports|shoe inserts] are [worn out|too hard|squeaking], can I get [new ones|a softer pair]?",
            "The [wrist splint|knee brace|ankle brace|neck collar] [rubs|slips|is too big], can it be adjusted {when}?",
        )),
        Topic("speech", (
            "Since the stroke {kin} [mixes up words|slurs|can't find words], [can that be trained|who practises with him]?",
            "{kin} [chokes on|coughs with] [thin drinks|soup|bread|every meal] {since} the stroke.",
        )),
        Topic("sport", (
            "When may I [run|play football|ski|swim|lift weights] again after the [torn ligament|broken ankle|sprain]?",
            "It's {days} since I [tore|pulled|strained] my [hamstring|calf|Achilles], can I train {when}?",
        )),
    ),
    "wellbeing": (
        Topic("panic", (
            "My heart races and I [think I'm dying|can't breathe|shake] [in shops|on the bus|at the {job}], it's nerves I think.",
            "I worry [about everything|all day|myself sick] {again} and can't [switch off|calm down].",
        )),
        Topic("low mood", (
            "I feel [empty|hopeless|worthless|flat] {since}, nothing [is fun|matters|cheers me up].",
            "[{kin}|I] [cries|cry] most days and [won't leave|hardly leave] the house, who can [we|I] talk to?",
        )),
        Topic("sleep", (
            "I lie awake until [three|four|two] every night, [what can I do|counting sheep is no use|it's been {days}].",
            "I [wake up at|am wide awake at] [3 am|four|half past two] and can't [drop off again|get back to sleep] {since}.",
            "[Night shifts|Shift work at the {job}] [ruined|wrecked] my sleep, I am exhausted by noon.",
        )),
        Topic("weight", (
            "I'd like to lose [ten kilos|twenty pounds|some weight|my belly], is there a [group|diet plan|coach]?",
            "[I gained|I've put on] [eight kilos|fifteen pounds|two sizes] {since} and every diet fails.",
            "What should {kin} eat [with diabetes|with gout|with high cholesterol]? We'd like a [meal plan|food coach].",
        )),
        Topic("drinking", (
            "I drink [a bottle of wine|six beers|more than I should] [every night|most evenings] and want to [cut down|stop].",
            "[{kin}|I] can't stay away from [betting|the slot machines|online casinos|the bottle], [we need help|it ruins us].",
        )),
        Topic("carers", (
            "I look after {kin} [day and night|all alone|since the dementia] and I'm at the end of my [strength|rope].",
            "Looking after {kin} [eats me up|leaves me no life|wears me out], are there others [like me|to meet]?",
        )),
        Topic("grief", (
            "My [husband|wife|father|mother|best friend] died [in spring|{days} ago|last year] and I [can't cope|am lost|see him everywhere].",
            "Is there a [circle|group] for [widows|widowers|people who lost someone]? {kin} passed away {days} ago.",
        )),
        Topic("headaches", (
            "Another migraine {when}, the [third|fourth|fifth] this month, light [hurts|is unbearable].",
            "A [tight band|pressure] around my head [every evening|by noon|after stress], pills [don't touch it|barely help].",
        )),
    ),
    "family_health": (
        Topic("pregnancy", (
            "I am [8|12|20|28|31] weeks [pregnant|along], [when is the next check|is spotting normal|may I fly to {place}]?",
            "My test is positive, [whom do I see first|what comes next|should I take folic acid]?",
        )),
        Topic("baby checks", (
            "[The baby|Our newborn] is due for [the two-month|the four-month|the first] jabs, [{when}?|can we come {when}?]",
            "Is [our baby|my six-month-old|our newborn] [gaining enough|too small|late to roll over]?",
        )),
        Topic("contraception", (
            "I'd like to [switch from|stop] the [pill|mini-pill|patch], [what about a coil|is an implant better]?",
            "[The condom split|I forgot the pill] {when}, is it too late for the morning-after [pill|tablet]?",
        )),
        Topic("breastfeeding", (
            "Feeding hurts, my [nipples|breasts] are [cracked|sore|hard], [is it the latch|what helps]?",
            "I don't have enough milk for [the twins|the baby|our newborn], should I [pump|top up with formula]?",
        )),
        Topic("menopause", (
            "[Hot flushes|Night sweats] [wake me|soak the sheets|all day] {again}, I am [48|50|51|53].",
            "My periods [stopped|come every two weeks|are all over the place] at [46|49|52], is this the change?",
        )),
        Topic("fertility", (
            "We've been trying for a baby for [a year|eighteen months|two years], [what can be checked|is it me|nothing happens].",
            "Should {kin} give a sperm sample? We want [children|a second child] and I'm [36|38|40].",
        )),
        Topic("bedwetting", (
            "{child} still wets the bed at [six|seven|eight], [is that normal|does an alarm help].",
            "{child} [refuses the potty|only goes in a nappy|was dry and now isn't], any [tips|advice]?",
        )),
        Topic("child forms", (
            "The [summer camp|nursery|football club|swim team] wants a health form for {child} by {when}.",
            "{child}'s [school|kindergarten|teacher] asks for [proof of vaccines|a note about asthma|a fit-for-sport letter].",
        )),
        Topic("fussy eating", (
            "{child} eats nothing but [pasta|white bread|yoghurt|chips], [should I give vitamins|how do I get greens in].",
            "{child} [screams at|throws away] every [meal|vegetable], is he [growing enough|missing something]?",
        )),
    ),
    "device_clinic": (
        Topic("pacemaker", (
            "My pacemaker [beeped|buzzed|vibrated] [{when}|last night|twice], is the battery [low|going]?",
            "[Can I|May I] use [an induction hob|a magnet mattress|a welding set] with my [pacemaker|defibrillator]?",
        )),
        Topic("glucose sensor", (
            "The glucose sensor [fell off|stopped|reads low all the time] after [two|four|six] days.",
            "My [arm sensor|sugar sensor] [shows dashes|bleeds|lost signal], [swap it|wait a day]?",
        )),
        Topic("sleep mask", (
            "The [CPAP|night breathing] mask [leaks|whistles|hurts my nose], I need [another size|new straps].",
            "My breathing machine for the night [dries my throat|blows too hard|shows an error], [can you turn it down|the filter is black].",
        )),
        Topic("hearing aid", (
            "My hearing aid [whistles|is silent|crackles|eats batteries] {since}.",
            "[{kin}|I] [need|wants] new [ear moulds|domes|tubes] for the hearing [aid|aids], [the old ones itch|one is lost].",
        )),
        Topic("app pairing", (
            "The [watch|app|phone] won't [pair|connect|sync] with my [sensor|pump|scale|cuff] since the update.",
            "The [app|phone] shows no [values|data|curve] {since}, [bluetooth is on|I reinstalled it].",
        )),
        Topic("airport letter", (
            "I need a [letter|card] for airport security [because of|about] my [implant|pump|pacemaker|sensor], we fly {when}.",
            "Can I walk through the [body scanner|security gate] at the airport with [my implant|my pump|the sensor on]?",
        )),
        Topic("pump", (
            "The insulin pump [alarms|says blocked|won't prime|has a crack], [what now|which number do I ring].",
            "How do I [set|change] the basal rate on the pump for [night shifts|summer time|the holidays]?",
        )),
        Topic("oxygen", (
            "The oxygen [machine|concentrator|bottle] [hums loudly|is nearly empty|shows a red light], {kin} needs it [all day|at night].",
            "We need [longer tubing|a portable tank|nose tubes] for {kin}'s oxygen [{when}|for the trip to {place}].",
        )),
        Topic("home cuff", (
            "My [arm cuff|cuff] [is too tight|shows ERR|gives a different number each time], can you check the device?",
            "Which [size cuff|monitor] [should I buy|fits a thick arm]? The [loaned one|old one] [must go back|broke].",
        )),
    ),
}

# Public, invented by whoever offers the federation; they show two or three topics of each department, not all.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "front_desk": (
        "Do you have a free time with Dr Weiss early next week?",
        "Something came up, I have to cancel my visit on Thursday.",
        "Could I book a check-up for both my children on the same day?",
    ),
    "nurse_line": (
        "My daughter has been running a fever for three days and has a bad cough.",
        "I have an itchy red rash on both arms since yesterday.",
        "My throat is so sore that I can hardly swallow, what should I do?",
    ),
    "pharmacy": (
        "I have almost run out of my blood pressure tablets, please renew them.",
        "I missed my evening dose, should I take it now?",
        "Can you order my asthma inhaler again?",
    ),
    "laboratory": (
        "Do I need to be fasting for the blood test on Monday?",
        "Until what time can I come in to give blood?",
        "May I drink water before my blood is drawn?",
    ),
    "imaging": (
        "How long does an MRI of the spine take?",
        "I need an x-ray of my foot, can I come without a time?",
        "Is there anything to prepare for the CT scan tomorrow?",
    ),
    "billing": (
        "I was billed twice for the same visit in May.",
        "Is it possible to pay my balance in monthly parts?",
        "I do not understand the second charge on my bill.",
    ),
    "records": (
        "Please send me a copy of my medical file.",
        "I am moving away, could you forward my history to my new doctor?",
        "I would like the report of my last visit as a PDF.",
    ),
    "care_coordination": (
        "Has my referral to the heart specialist been sent yet?",
        "My mother leaves the hospital tomorrow, who looks after her next?",
        "I am still waiting to hear from the skin specialist.",
    ),
    "rehabilitation": (
        "How many times a day should I do the exercises for my new knee?",
        "My lower back has been stiff since I lifted a sofa.",
        "Is it normal that my shoulder hurts after the stretching exercises?",
    ),
    "wellbeing": (
        "I get panic attacks on the train and need someone to talk to.",
        "I have felt sad and without any energy for weeks.",
        "I am anxious about everything and can't relax any more.",
    ),
    "family_health": (
        "I am ten weeks pregnant, when is my first check?",
        "Our baby needs the next vaccines, when can we come?",
        "Is my newborn gaining enough weight?",
    ),
    "device_clinic": (
        "My pacemaker made a beeping sound this morning.",
        "The glucose sensor on my arm fell off after three days.",
        "The sugar sensor on my arm shows no values.",
    ),
}
