"""The invented clinic of the demo: its departments, what patients write to each, and the words they use.

Knows only text. Under each department stand its topics, which are house conventions ("sick notes go to records"), and
under each topic its templates. How sites, shares and files are made out of them is ``demo.py``'s business.
"""

from __future__ import annotations

import random
import re

_INNERMOST = re.compile(r"\[([^\[\]]*)\]|\{(\w+)\}")


def expand(template: str, rng: random.Random) -> str:
    """The template with each ``[one|other]`` and ``{slot}`` replaced by one of its readings, innermost first."""
    while match := _INNERMOST.search(template):
        readings = SLOTS[match[2]] if match[2] else match[1]
        template = template[: match.start()] + rng.choice(readings.split("|")) + template[match.end() :]
    return template


SLOTS: dict[str, str] = {
    "days": "two days|three days|four days|five days|a week|ten days|two weeks|three weeks|a month",
    "since": "since Sunday|since Monday|since last night|since yesterday|since the weekend|since last week|for days now|again this week",
    "soon": "on Monday|on Tuesday|on Wednesday|on Thursday|on Friday|tomorrow|next week|on the 14th|on the 3rd|this afternoon",
    "past": "yesterday|last night|on Monday|on Tuesday|last Friday|last week|this morning|two days ago|on the 2nd|at the weekend",
    "by": "by Monday|by Wednesday|by Friday|by next week|by the 9th|by the end of the month|before the weekend|tomorrow at the latest",
    "time": "8:15|9:00|9:40|10:30|11:20|1:45|2:30|3:10|4:00|half past four",
    "doctor": "Dr Patel|Dr Okafor|Dr Lindqvist|Dr Moreno|Dr Haas|Dr Novak|Dr Chen|Dr Farouk|Dr Brandt",
    "kin": "my mother|my father|my husband|my wife|my sister|my brother|my aunt|my partner|my grandmother",
    "child": "my son|my daughter|our youngest|our eldest|my little boy|my little girl|our toddler|my stepson",
    "someone": "{child}|{child}|{kin}|my neighbour",
    "victim": "me|me|{child}|{kin}",
    "drug": "metformin|lisinopril|sertraline|levothyroxine|atorvastatin|omeprazole|amlodipine|bisoprolol|ramipril",
    "joint": "knee|hip|shoulder|ankle|wrist|elbow",
    "limb": "left arm|right arm|left leg|right leg|neck|back|chest|stomach|left hand|shin",
    "specialist": "a cardiologist|a neurologist|an eye specialist|a skin specialist|a kidney specialist|a urologist|a surgeon",
    "job": "warehouse|school|bakery|office|factory|restaurant|bus company|post office",
    "land": "Kenya|Peru|Vietnam|India|Ghana|Thailand|Brazil|Tanzania|Cambodia",
    "amount": "$45|$80|$120|$150|$212|$310|$340|$460|$95",
    "place": "Springfield|Ashford|Newport|Weston|Granville|Kingston|Milton|Harwich",
}


TOPICS: dict[str, dict[str, tuple[str, ...]]] = {
    "front_desk": {
        "booking": (
            "[Could I|Can I|May I] [come in|be seen] {soon} [around|at about] {time}?",
            "[Is there|Have you] an opening with {doctor} [{soon}|before the holidays|early in the day]?",
            "I need [a slot|a time|to come in] with {kin}, [any day|{soon}] [after work|before noon|after {time}] would do.",
        ),
        "moving": (
            "I [can't make|won't make|have to miss] my {time} visit {soon}, [can we move it|please give me another day|can it be later]?",
            "Please [cancel|call off] [{kin}'s|{child}'s|my] appointment {soon}, [something came up|we are away|the car broke down].",
            "[Any chance of|Is there any way of] swapping my {time} with {doctor} for [a later day|another week|the same time on Friday]?",
        ),
        "running late": (
            "[Stuck in traffic|The bus is delayed|My train is late], I'll be [ten|fifteen|twenty] minutes [behind|late] for {time}.",
            "We are [still on the motorway|looking for a taxi|at the station], will {doctor} still see us after {time}?",
        ),
        "interpreter": (
            "{kin} speaks only [Polish|Arabic|Spanish|Somali|Urdu|Farsi], can someone translate {soon}?",
            "I am deaf, [please have|could there be] a sign language interpreter [{soon}|at {time}|when I come].",
            "{kin} understands little English, [may I come along to translate|who of you speaks [Turkish|Tamil|Dari|Greek]]?",
        ),
        "contact details": (
            "We moved to [Elm Street|Mill Lane|Station Road|Park Avenue|Church Hill] {past}, please note the new address.",
            "My [mobile|phone] number [has changed|is different now], it ends in [41|27|88|09|63|15].",
            "I got married and my surname is now [Baker|Jansen|Ruiz|Khan|Olsen], please use that one.",
        ),
        "lost property": (
            "I [left|forgot] my [umbrella|scarf|glasses|jacket|gloves|hat] in the waiting room {past}, did anyone hand it in?",
            "Has anybody found a [blue|black|red|grey] [backpack|wallet|purse|walking stick|teddy bear] on your chairs?",
        ),
        "parking and stairs": (
            "Where [do I park|can we park|is the car park] when I come [{soon}|at {time}]? The [side street|square] is always full.",
            "{kin} [is in a wheelchair|cannot climb stairs|uses a scooter], is there a [ramp|lift] at the [back|side] entrance?",
        ),
    },
    "nurse_line": {
        "fever and stomach": (
            "{someone} has a temperature of [38.5|39|39.4|101|102] {since} [and a cough|and shivers|on and off], what can we do?",
            "A [dry|wet|barking] cough {since} and now [a fever|chills|a sore throat], should I [worry|stay in bed|do something]?",
            "[Throwing up|Diarrhoea|Vomiting] {since}, [hardly any water stays down|feeling weak|could it be a bug]?",
        ),
        "rash": (
            "[Red|Itchy|Blotchy] spots on [{child}'s|{kin}'s|my] {limb} {since}, they [are spreading|itch at night|feel hot].",
            "There is a [ring|patch|bump] on my {limb} that [burns|oozes|peels] {since}, what should I put on it?",
        ),
        "what a result means": (
            "My [cholesterol|sugar|ferritin|potassium|white cell count] [came back|is] [high|low|flagged in red], is that [bad|dangerous]?",
            "[I saw|There was] a [TSH of 6|haemoglobin of 10|creatinine of 1.6|CRP of 22] {past}, what does [it|that number] mean?",
            "The [biopsy|smear|thyroid|kidney|liver] result [is in|was posted] {past}, I can't make sense of it.",
        ),
        "bites and stings": (
            "A [dog|cat|neighbour's dog|hamster|horse] bit {victim} on the {limb} [{past}|an hour ago].",
            "I pulled a tick off [{child}'s|my|{kin}'s] {limb} and [part of it is still in|there is a red ring|the head stayed in].",
            "Stung by a [wasp|bee|hornet|jellyfish] on the {limb} {past}, it is [swelling|throbbing|twice the size].",
        ),
        "wounds": (
            "The [stitches|staples] on my {limb} [are weeping|look red|came loose] {since}, who takes them out?",
            "[{kin}'s|My] [cut|wound|burn] on the {limb} [smells|is yellow|is still open] after {days}, when is the dressing changed?",
        ),
        "side effects": (
            "Ever since I started {drug} I feel [sick|dizzy|shaky|swollen|so tired], is this from the tablets?",
            "{someone} took the first {drug} {past} and got [a swollen lip|cramps|a pounding heart|a dry mouth], stop or go on?",
        ),
    },
    "pharmacy": {
        "refills": (
            "I [am down to|have only] [two|three|four|five] {drug} [tablets|pills] left, please [renew|refill] them.",
            "Please [send|order] another [month|three months|box] of {drug} [for {kin}|{by}|to {place}].",
            "The {drug} [is empty|runs out {soon}|is finished], [repeat please|can I get more|same strength as before].",
        ),
        "doses": (
            "I forgot my {drug} {past}, [take two|do I double up|skip it] now?",
            "Should {drug} be taken [with food|before bed|on an empty stomach|in the morning]? [The leaflet is vague|{kin} says no].",
        ),
        "travel health": (
            "[We fly|I'm flying|Our group goes] to {land} [{soon}|in {days}|in spring], which jabs [do we need|are advised]?",
            "[Honeymoon|Work trip|Backpacking] in {land} {soon}, do I need [yellow fever|typhoid|hepatitis|malaria] protection?",
            "{kin} and I are off to {land}, what [against mosquitoes|for the stomach|vaccines] should we [have|bring]?",
        ),
        "used needles": (
            "My [yellow box|bin] of used [needles|lancets] is full, where [do I drop it|can I hand it in|does it go] {soon}?",
            "What do I do with [{kin}'s|my] old [injection pens|syringes|lancets|needles]? [Nobody takes them|I don't dare bin them].",
        ),
        "giving up smoking": (
            "I want to [quit|give up] [cigarettes|smoking|vaping] {soon}, are there [patches|gums|sprays] that help?",
            "[Smoke-free|No cigarette] for {days} but the [cravings|urges] are [awful|back], can I have stronger [patches|gum|lozenges]?",
        ),
        "prior approval": (
            "My insurer [won't cover|rejected|refuses] {drug} [unless|until] {doctor} [asks for approval|justifies it|sends a reason].",
            "The [operation|infusion|brace|injection] {soon} needs [pre-approval|prior authorisation], is it [through|filed]?",
        ),
        "swallowing tablets": (
            "{kin} can't [swallow|get down] the [big capsules|tablets], is there a [syrup|liquid|powder] instead?",
            "May {drug} be [crushed|cut in half|dissolved in juice]? {child} [gags on it|spits it out].",
        ),
    },
    "laboratory": {
        "fasting": (
            "[Must I|Do I] [skip breakfast|stop eating|go without coffee] before they [draw blood|take my blood] {soon}?",
            "How many hours [without food|fasting] before the [sugar|cholesterol|glucose] test at {time}?",
        ),
        "giving blood": (
            "[When|Until what time] can I [drop by|walk in] to have my blood [taken|drawn] {soon}?",
            "{doctor} ordered [bloods|a blood count|an iron test|thyroid bloods], do I just [turn up|walk in] [{soon}|at {time}]?",
        ),
        "stool kit": (
            "The [bowel screening|stool] kit [arrived|came] {past}, [how do I send it back|how long does it keep|is {soon} too late]?",
            "I [spilled|lost] the [tube|little stick] of the [stool|bowel] kit, [can I get another|please send a new one] {soon}.",
        ),
        "screening for work": (
            "My new [{job}|employer] wants [a drug screen|a drug test|a urine screen] before I start {soon}.",
            "I start at a {job} {soon} and must prove I am [clean|drug free|immune to hepatitis B].",
        ),
        "allergy tests": (
            "I [sneeze|wheeze|itch] whenever I [pet a cat|mow the lawn|eat peanuts|clean the attic], can you find out what I react to?",
            "{child} [swells up|gets hives] from [strawberries|nuts|shrimp|milk|feathers], can we get [tested|a prick test]?",
        ),
        "fear of needles": (
            "I [faint|pass out|panic] when I see a needle, can I [lie down|bring someone|have numbing cream] {soon}?",
            "{kin} is [terrified of|hard to stick with] needles, last time it took [three|four|five] tries to find a vein.",
        ),
    },
    "imaging": {
        "scans": (
            "How long [will I lie in the tube|does the MRI take|am I in the machine] {soon}?",
            "[May I eat|Can I drink|Should I come early] before the [CT|MRI|ultrasound] of my {limb} at {time}?",
        ),
        "x-rays": (
            "{doctor} wants [an x-ray|a picture] of my {joint}, [do I need a time|can I walk in {soon}|where do I go]?",
            "Has anyone looked at the [x-ray|film] of [{child}'s|{kin}'s|my] {joint} from {past}?",
        ),
        "narrow tubes": (
            "I get [claustrophobic|a panic] in [tight|closed|narrow] spaces, can I [have a sedative|keep my head out] {soon}?",
            "Is there an open [machine|scanner]? {kin} couldn't [stand|bear] the [narrow tunnel|tube] last time.",
        ),
        "breast screening": (
            "I got [a letter|an invitation] for [my mammogram|breast screening] {past}, [is it every two years|does it hurt|I can't come]?",
            "They called {kin} back for [another mammogram|more breast views] {soon}, [why|is that usual|we are scared].",
        ),
        "picture discs": (
            "Can I have my pictures on a [disc|CD|USB stick]? [A surgeon in {place} wants them|I see {specialist} {soon}].",
            "The [disc|CD] [{kin}|I] got [won't open|is blank|asks for a password], please [burn|make] a new one.",
        ),
        "heart recorder": (
            "The [stick-on|taped-on] [heart recorder|heart monitor] has been on for {days}, where do I bring it to be read out?",
            "The [recorder|monitor] with the [three|five] wires [came off|itches|blinks red] {past}, the {days} aren't over.",
        ),
    },
    "billing": {
        "wrong charges": (
            "I was charged {amount} [twice|two times] for [the same visit|{past}|one visit with {doctor}].",
            "Why [do I owe|am I asked for] {amount}? [My plan covers this|I already paid|I never saw {doctor}].",
        ),
        "instalments": (
            "I can't pay {amount} [at once|in one go|this month], could I [pay monthly|spread it|have more time]?",
            "[Lost my job|Money is tight|I am on a pension], is there [help|a discount] with the {amount}?",
        ),
        "new insurer": (
            "I [changed|switched] [insurers|health plans] {past}, where do I [send|upload] the new card?",
            "[Do you take|Are you in network with] [Blue Oak|Unity Care|Sunrise Health|Medway Plus]? My [job|plan] changes {soon}.",
        ),
        "estimates": (
            "What will [a colonoscopy|cataract surgery|a skin check|a hernia repair|a vasectomy] [cost me|set me back] {soon}?",
            "[Roughly how much|What] is [an MRI|a visit|a flu jab|a health check] [{soon}|with {doctor}] if I pay [cash|myself]?",
        ),
        "missed visits": (
            "I got a {amount} [fine|fee|penalty] for a visit missed {past}, but I [rang ahead|was in hospital|cancelled].",
            "[Please waive|Must I really pay] the [missed visit|no-show] fee, [{child} was ill|my car broke down|the bus never came].",
        ),
        "tax": (
            "I need a [list|summary|statement] of everything [I|we|{kin}] paid [last year|in 2023|in 2024] for the tax return.",
            "My [accountant|tax adviser] asks for [receipts|proof of payment] from [January|last year|spring] [on|until now].",
        ),
    },
    "records": {
        "copies": (
            "[Please send me|Could I have] a copy of [my notes|{kin}'s chart|my file|all you hold on me] [since 2015|{by}].",
            "I need [the report|the letter|the notes] of my visit [with {doctor}|{past}] [on paper|as a PDF].",
        ),
        "transfers": (
            "I am moving to {place} {soon}, please [send|forward] my [file|history] to the [new clinic|new doctor] there.",
            "{kin} has a new [family doctor|practice] in {place}, who [asks for|needs] the [old notes|history].",
        ),
        "sick notes": (
            "I'm [ill|in bed|unwell] {since}, my boss at the {job} [wants|needs] a [sick note|certificate].",
            "My sick note [ends|runs out] {soon} and I can't [go back to|face] the {job} yet, can you [extend|prolong] it?",
            "The {job} says I need a [paper|line|note] that I am [fit again|off work for {days}|allowed light duty].",
        ),
        "login": (
            "I [forgot|lost] my password {past} and the [reset|code] [email|text] never [comes|arrives].",
            "The website [locks me out|says account locked|won't let me in] {since}, I'm writing from {kin}'s account.",
        ),
        "wrong entries": (
            "My chart says [I smoke|I had a stroke|I'm diabetic|I am 84|I take {drug}], that is [wrong|not me|a mix-up].",
            "[My birth date|The blood group|{kin}'s middle name|The operation] you have is [wrong|not right], please correct it.",
        ),
        "forms": (
            "My [life insurer|pension fund|mortgage company] sent a [form|questionnaire] that {doctor} has to fill in.",
            "The [driving licence|disability|firearms|taxi licence] office [wants|needs] a medical form [signed|filled in] {by}.",
            "My [lawyer|solicitor] asks what was [found|written] after the accident [{past}|in {place}].",
        ),
    },
    "rehabilitation": {
        "exercises": (
            "How often do I do the [bends|stretches|exercises] after my new {joint}? It [still swells|is stiff] {since}.",
            "Is it normal that my {joint} [hurts|clicks|swells] [after|during] the [exercise sheet|band exercises|step-ups]?",
        ),
        "stiff back": (
            "I [put my back out|twisted my back] {past} [lifting boxes|in the garden|at the {job}] and can [hardly bend|barely get up].",
            "My neck [is stiff|seizes up] [{since}|after driving|every morning], would [massage|heat|stretching] help?",
        ),
        "dizziness": (
            "The room spins when I [turn over in bed|look up|bend down|roll to the left|tip my head back] {since}.",
            "{since} {kin} feels [giddy|wobbly|off balance] [when getting up|on stairs|in the dark], like being on a boat.",
        ),
        "leaking": (
            "I leak when I [laugh|sneeze|jump|run|cough] [ever since the birth|{since}|after the operation], it is embarrassing.",
            "I [dash|rush] to the toilet [every hour|ten times a day|all night] {since} and don't always make it in time.",
        ),
        "jaw": (
            "My jaw [clicks|locks|aches|pops] when I [chew|yawn|open wide|eat an apple] {since}.",
            "I grind my teeth at night and wake with a sore [jaw|face] [{since}|every morning|most days].",
        ),
        "speech": (
            "Since the stroke {kin} [mixes up words|slurs|can't find words], [can that be trained|who practises that]?",
            "{kin} [chokes on|coughs with] [thin drinks|soup|bread|every meal] after the stroke.",
        ),
    },
    "wellbeing": {
        "panic": (
            "My heart races and I [think I'm dying|can't breathe|shake] [in shops|on the bus|at the {job}], it's nerves I think.",
            "I worry [about everything|all day|myself sick] {since} and can't [switch off|calm down].",
        ),
        "low mood": (
            "I feel [empty|hopeless|worthless|flat] {since}, nothing [is fun|matters|cheers me up].",
            "{kin} [cries|weeps] most days and [won't|hardly will] leave the house, who can we talk to?",
        ),
        "sleep": (
            "I lie awake until [three|four|two] every night, [what can I do|counting sheep is no use|it's been {days}].",
            "I [wake up at|am wide awake at] [3 am|four|half past two] and can't [drop off again|get back to sleep] {since}.",
            "[Night shifts|Shift work at the {job}] [ruined|wrecked] my sleep, I am exhausted by noon.",
        ),
        "weight": (
            "I'd like to lose [ten kilos|twenty pounds|some weight|my belly], is there a [group|diet plan|coach]?",
            "[I gained|I've put on] [eight kilos|fifteen pounds|two sizes] in {days} and every diet fails.",
            "What should {kin} eat [with diabetes|with gout|with high cholesterol]? We'd like a [meal plan|food coach].",
        ),
        "drinking": (
            "I drink [a bottle of wine|six beers|more than I should] [every night|most evenings] and want to [cut down|stop].",
            "{kin} can't stay away from [betting|the slot machines|online casinos|the bottle], [we need help|it ruins us].",
        ),
        "grief": (
            "My [husband|wife|father|mother|best friend] died [in spring|{days} ago|last year] and I [can't cope|am lost].",
            "Is there a [circle|group] for [widows|widowers|people who lost someone]? {kin} passed away {days} ago.",
        ),
    },
    "device_clinic": {
        "pacemaker": (
            "My pacemaker [beeped|buzzed|vibrated] [{past}|twice], is the battery [low|going]?",
            "[Can I|May I] use [an induction hob|a magnet mattress|a welding set] with my [pacemaker|defibrillator]?",
        ),
        "glucose sensor": (
            "The glucose sensor [fell off|stopped|went blank] {past} after only [two|four|six] days.",
            "My [arm sensor|sugar sensor] [shows dashes|bleeds|lost signal] {since}, [swap it|wait a day]?",
        ),
        "night mask": (
            "The [CPAP|night breathing] mask [leaks|whistles|hurts my nose] {since}, I need [another size|new straps].",
            "My breathing machine for the night [dries my throat|blows too hard|shows an error] {since}, can you turn it down?",
        ),
        "hearing aid": (
            "My hearing aid [whistles|is silent|crackles|eats batteries] {since}.",
            "{kin} needs new [ear moulds|domes|tubes] for the hearing [aid|aids], [the old ones itch|one is lost].",
        ),
        "app pairing": (
            "The [watch|app|phone] won't [pair|connect|sync] with my [sensor|pump|scale|cuff] since the update.",
            "The [app|phone] shows no [values|data|curve] {since}, [bluetooth is on|I reinstalled it].",
        ),
        "airport letters": (
            "I need a [letter|card] for airport security [because of|about] my [implant|pump|pacemaker|sensor], we fly {soon}.",
            "Can I walk through the [body scanner|security gate] at the airport {soon} with [my implant|my pump|the sensor on]?",
        ),
    },
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
    "device_clinic": (
        "My pacemaker made a beeping sound this morning.",
        "The glucose sensor on my arm fell off after three days.",
        "The sugar sensor on my arm shows no values.",
    ),
}
