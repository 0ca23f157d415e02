"""What people ask an assistant about themselves; `questions` finds which of it a statement answers."""

POOL: tuple[str, ...] = tuple(
    """
What is my job title?
What do I do for a living?
What kind of work do I do?
What line of work am I in?
Where do I work?
Who do I work for?
How do I earn my money?
What is my vocation?
Who is my boss?
Who are my colleagues?
When do I start work?
What was my first job?
Am I retired?
What am I studying?
What did I study?
Which school did I go to?
What did I graduate in?
Which subject do I teach?
Who is my teacher?
What language do I speak at home?
Which languages can I speak?
Which skill am I picking up these days?
What course am I taking?
Where do I live?
Which town am I from?
What is my address?
Where is my house?
Which country do I live in?
Which street do I live on?
Which floor do I live on?
Where was I born?
Where do my roots lie?
Where did I spend my early years?
Where am I from originally?
What is my nationality?
Where did I move to?
Who do I live with?
Which room do I sleep in?
What is my flat like?
Who are my neighbours?
What is my name?
What do my friends call me?
What is my surname?
How old am I?
When was I born?
How tall am I?
What is my shoe size?
What colour are my eyes?
What is my star sign?
Which hand do I write with?
Am I married?
Who is my husband?
Who is my wife?
What's my partner's name?
When did I marry?
When do we celebrate our wedding day?
How many children do I have?
What are my children called?
What is my daughter's name?
What's my son called?
How old is my son?
What does my father do?
Where do my parents live?
Do I have any siblings?
Who is my brother?
What name does my brother go by?
Where does my sister live?
Who is my aunt?
What is my grandmother's name?
Where does my uncle live?
Who is my cousin?
Who is my best friend?
What is my friend's name?
Whom do I meet every week?
What pets do I have?
What animal lives with me?
Which animals do I keep?
What is my dog called?
What is my cat's name?
What's the name of my pet?
What breed is my dog?
How many animals do I own?
What do I drive?
What vehicle do I have?
Which brand of car is mine?
What colour is my car?
Where is my car parked?
How do I get to work?
Do I ride a bike?
Which bus do I take?
What is my number plate?
What is my boat's name?
What do I like to eat?
What is my favourite food?
Which dish do I love?
What should I not eat?
Which food makes me ill?
What am I allergic to?
What is bad for my health?
What must not be in my meal?
What kind of diet am I on?
What do I dislike?
What do I have for breakfast?
What drink do I prefer?
How do I take my coffee?
What do I like to drink?
What do I order at the bar?
What is my favourite cake?
Which fruit do I like most?
What do I like to cook?
What is my favourite colour?
What is my favourite book?
Which author do I like best?
Which film do I like best?
Which series am I watching?
What music do I like?
Which band am I a fan of?
What is my favourite song?
Which instrument am I good at?
What do I play?
What is my favourite animal?
What is my favourite place?
What is my favourite season?
What is my favourite game?
What do I like best?
What do I enjoy?
How do I relax?
What do I do at the weekend?
What do I do for fun?
What is my pastime?
Which sport do I do?
What do I practise?
Which team do I support?
What club am I a member of?
What do I collect?
What am I making?
What do I build in my workshop?
What do I grow in my garden?
Who do I train with?
When do I exercise?
What do I do every morning?
What do I do on Mondays?
When do I get up?
When do I go to bed?
What is my plan for today?
What am I planning?
Where am I going on holiday?
When do we leave?
Where are we travelling to?
Which city do I want to visit?
Where did I spend my last holiday?
When is my appointment?
What is on my calendar?
When is my exam?
When is the party?
What date is my birthday?
Which day was I born on?
Which date should I never forget?
What is my password?
What's the wifi password?
How do I log in?
What is the code?
Which digits do I need?
What is my PIN?
How can I unlock it?
How do I get into the building?
What is my phone number?
What is my email address?
What is the number of my room?
Where is my key?
Where do I keep my spare key?
Where did I put it?
Where do I store my tools?
Where is my passport?
Which bank am I with?
Where is my money?
Who manages my money?
Who is my insurer?
How much do I earn?
What did I buy?
What did I sell?
What did I get as a present?
Who gave it to me?
Who is my dentist?
Which physician treats me?
Who treats me when I'm ill?
Which medicine do I take?
What illness do I have?
What is my blood group?
What am I afraid of?
What scares me?
What am I proud of?
What is my goal?
What do I dream of?
What do I believe in?
What annoys me?
Who repairs things for me?
Who is my hairdresser?
Who is my landlord?
Who takes care of my garden?
Which phone do I have?
Which computer do I use?
What size do I wear?
What do I wear to work?
Which shop do I like?
Where do I buy my bread?
Which newspaper do I read?
Which software do I use?
What project am I working on?
What is the deadline of my project?
What is my company called?
Who is my client?
How should you answer me?
What should you call me?
What did I lose?
What did I win?
Which event did I attend?
Who did I meet?
Whom do I miss?
What is my profession?
What am I by trade?
What post do I hold?
Which department am I in?
What is the name of my employer?
Which firm employs me?
Where is my office?
How long have I worked there?
What shifts do I work?
What are my working hours?
Who do I report to?
Who leads my team?
Who works with me?
What does my team do?
What is my rank?
Who was my predecessor?
What is my business about?
What do I teach?
What do I write?
What do I make by hand?
What do I repair?
What do I sell at the market?
What is my research about?
What is the topic of my paper?
Which degree do I have?
Which university did I attend?
What is my major?
What course did I sign up for?
Which exam am I taking?
Which class do I find hard?
Who supervises me?
Which language am I studying?
How many languages do I speak?
What is my mother tongue?
Which city is home to me?
Where is my flat?
Where do I come from?
Where was I raised?
What is my native country?
In which part of town do I live?
What is my postcode?
What is my house number?
Which storey is my apartment on?
How long have I lived here?
Where did I live before?
Who is my flatmate?
Who lives next door?
What are my neighbours called?
How many rooms do I have?
How do I heat my house?
What colour is my front door?
What is in my cellar?
What is in my garage?
What is in my garden?
Which tree stands in my garden?
What is my full name?
What is my middle name?
What is my nickname?
How do I spell my name?
What is my age?
What year was I born in?
In which month was I born?
How much do I weigh?
What is my height?
What is my hair colour?
Do I wear glasses?
Am I left-handed?
Do I have a tattoo?
What is my marital status?
What is my husband's job?
What does my wife do?
Where did I meet my partner?
How long have we been together?
When is our anniversary?
Where did we get married?
How old is my daughter?
Where does my son go to school?
How old are my children?
When is the baby due?
What is my mother called?
What is my father's name?
Where was my mother born?
What does my mother do?
How old is my father?
How many brothers and sisters do I have?
What does my sister do?
Who is my older brother?
Who is my twin?
What is my nephew called?
What is my niece's name?
Who is my godmother?
Who is my grandfather?
Where did my grandparents live?
Who is my mother-in-law?
Who is coming to visit me?
Who do I live near?
Who do I call when I need help?
Who is my emergency contact?
Who do I trust most?
Who have I known longest?
Who taught me to cook?
Who do I owe something?
Who owes me money?
Who borrowed something from me?
How much did I lend?
What is my horse called?
What is my bird called?
How old is my pet?
What does my pet eat?
Who is my vet?
Who looks after my pets?
Who feeds the animals?
What am I looking after?
What make is my car?
How old is my car?
Who repairs my car?
What do I ride?
What type of bicycle do I have?
What train do I take?
How long is my journey to work?
When does my bus leave?
What fuel does it take?
Do I have a driving licence?
What do I sail?
Which meal is my favourite?
What do I usually eat for lunch?
What do I eat in the evening?
Which sweets do I like?
Which spice do I dislike?
Which vegetables do I hate?
What do I refuse to eat?
What can't my stomach take?
Do I eat fish?
Do I drink alcohol?
Do I take sugar?
What wine do I like?
Which beer do I drink?
What do I drink in the morning?
Which restaurant do I like?
What is my recipe for?
What do I bake?
What did my grandmother cook for me?
What is my lucky number?
What is my favourite flower?
What is my favourite word?
Which painter do I admire?
Who is my hero?
Who is my favourite singer?
Which concert did I go to?
Which radio station do I listen to?
What podcast do I follow?
What am I reading?
What was the last film I saw?
What magazine do I get?
What do I listen to?
Which instrument am I learning?
Which choir do I sing in?
Which part do I sing?
What do I paint?
What do I photograph?
What do I knit?
What do I dance?
Which board game do I play?
Who do I play with?
Which position do I play?
Which sport did I give up?
How far do I run?
Where do I swim?
What is my best time?
Which mountain did I climb?
Where do I go hiking?
Which gym am I a member of?
What did I stop doing?
What bad habit did I give up?
Do I smoke?
When did I quit?
What did I promise?
What is my resolution?
What am I saving up for?
What do I want to buy?
What do I want to learn?
What do I want to become?
What would I like for my birthday?
What am I looking forward to?
When do I go on holiday?
Where was I last summer?
Who is travelling with me?
How do we get there?
Which hotel am I staying at?
What is my seat?
When is my flight?
Which airline do I fly with?
Where does my train leave from?
Where do I spend Christmas?
When is the meeting?
Where is the meeting?
What must I do tomorrow?
What do I do on Sundays?
What happens every Thursday?
When is rubbish collected?
When do I see my doctor?
When does the course begin?
When do the guests arrive?
What time do I wake up?
How many hours do I sleep?
How do I fall asleep?
When did I move here?
When did I start?
How long ago was it?
What did I do in my youth?
What happened to me?
Which accident did I have?
What did I break?
What was stolen from me?
What was my operation?
What do I suffer from?
Since when have I been ill?
What pills do I need?
How much of it do I take?
Which therapist do I see?
What is my eyesight like?
Which vaccination did I get?
What helps me when I'm in pain?
What is good for me?
What calms me down?
What makes me happy?
What makes me sad?
What can't I stand?
What am I bad at?
What am I good at?
What do I worry about?
What am I ashamed of?
Which party do I vote for?
What is my religion?
Which church do I go to?
What charity do I support?
What is the combination of my lock?
What code opens the gate?
What is the alarm code?
How do I switch it off?
What is my user name?
Which number do I dial?
What is my membership number?
What is my account number?
Which row is my seat in?
Which locker do I use?
Where do I park?
Where do I keep my documents?
Where do I hide it?
Where are my glasses?
Where is the charger?
Where is the remote?
Where is the ladder?
Where do we keep the medicine?
Who has my key?
Who has a copy of it?
What is the name of my boat?
What is my house called?
What is my band called?
What is the name of my school?
What is my blog called?
What is my book about?
What is the title of it?
Which model is it?
Which brand do I buy?
What colour is it?
How big is it?
How old is it?
How much did it cost?
Where did I get it?
What operating system do I use?
Which editor do I write in?
Which programming language do I use?
What is my server called?
Which browser do I use?
What is my website?
Who is my lawyer?
Who does my taxes?
Who is my plumber?
Who cleans for me?
Who is my teacher at the moment?
Which tax class am I in?
What is my rent?
What is my budget?
Which pension do I get?
How should you write to me?
What do I want to be called?
Which tone do I like?
How long should your answers be?
In what language should you answer?
What is my sister's name?
What is my brother called?
What is my grandfather's name?
What do I call my grandmother?
How old is my grandmother?
How old is my mother?
When is my mother's birthday?
When is my partner's birthday?
When is my child's birthday?
What is my partner's job?
What does my brother do for work?
Where does my daughter live?
Where does my best friend live?
Where does my aunt live?
Where did my family come from?
Who in my family is ill?
Who is having a baby?
Who got engaged?
Who moved abroad?
Which of my children goes to school?
What class is my child in?
What does my child play?
What did we name the baby?
What is my uncle's job?
What is my cousin's name?
Who is my stepfather?
Who is my godchild?
Who is my boyfriend?
Who is my girlfriend?
Who was my first love?
How did we meet?
What is my ex called?
Who do I have lunch with?
Who drives me to work?
Who picks up the children?
Who babysits for us?
Which friend can I ask for help?
What is my dog afraid of?
When was my pet born?
Where did I get my pet from?
What medicine does my pet need?
What kind of bird do I have?
What does my cat like?
What fish do I keep?
What floor covering do I have?
How big is my flat?
How much do I pay for my flat?
When do I pay the rent?
What is my landlord called?
Who do I call when the heating is broken?
What is my neighbour like?
Who has the flat upstairs?
Where are the fuses?
Where do I turn off the water?
Where do I put the bins?
Which bin goes out this week?
What is wrong with my house?
What is broken at home?
What do I have to get repaired?
What is the password of my network?
What is my network called?
How do guests get online?
What is the door code?
What code do I need for my bike?
What opens the safe?
Where is the first aid kit?
Where is my winter coat?
Where do I keep my bike?
Where did I hide the presents?
What do I keep under my bed?
What is stored in the attic?
Which window doesn't close?
What plant do I have at home?
Which plants need water?
What do I grow on my balcony?
What is my car called?
What year is my car from?
When is my car due for inspection?
Who insures my car?
What is wrong with my car?
How do my children get to school?
Which line do I take?
Where do I change trains?
At which stop do I get off?
What kind of bike do I have?
What is my job about?
What is my role at work?
What am I responsible for at work?
Which project do I lead?
What is my project called?
What is the code name?
Who is my manager?
Who is my assistant?
Who sits next to me at work?
Who am I training?
Who did I hire?
Who is my biggest customer?
What company do I want to work for?
When is my interview?
When do I retire?
When do I finish work?
When is my day off?
Which days do I work from home?
What is my next deadline?
When is my report due?
When do I hand in my thesis?
What is my thesis about?
What grade did I get?
Who is my professor?
What was my favourite subject at school?
What did I want to be as a child?
What am I saving for?
How much have I saved?
How much money do I need?
What is the next thing I will buy?
What do I spend most on?
What do I pay every month?
What subscription do I have?
How much do I owe?
What loan do I have?
What is my tax number?
What laptop do I have?
What system runs on my computer?
What is my computer called?
Which printer do I have?
What do I use my old computer for?
What is the name of my machine?
Which camera do I use?
Which app do I use for notes?
What keyboard do I use?
What file format do I prefer?
What can't I eat?
What must a cook leave out for me?
What happens if I eat it?
Which food can't I stand?
Which smell do I hate?
What do I cook on special days?
What do I bring to parties?
What cake do I make?
What is my speciality in the kitchen?
What tea do I drink?
What do I drink before going to bed?
How many coffees do I drink a day?
What do I put in my tea?
What snack do I like?
What is my favourite ice cream?
What cheese do I like?
Which pizza do I order?
Which meat don't I eat?
Since when have I been a vegetarian?
What is my favourite film?
Which film have I seen most often?
Who is my favourite actor?
What is my favourite album?
What kind of books do I read?
What is my novel about?
Who is the hero of my book?
What story am I writing?
What song can I play?
Where do I have my lessons?
When is my music lesson?
When is band practice?
On which day do I train?
Which evening am I busy?
When is my class?
What am I learning in my course?
What do I make in my class?
Which club do I cheer for?
Which team do I play for?
What is my number in the team?
What do my teammates call me?
Where do I run?
Where do I go for a walk?
How often do I run?
Which race did I enter?
What belt do I have?
What do I fish for?
What do I sew?
What instrument did I play as a child?
What puzzle do I like?
What toy did I have as a child?
What game am I playing at the moment?
Where would I like to travel?
What place do I dream of seeing?
What do I want to do before I die?
What is on my bucket list?
Where are we going in spring?
Where are we going in summer?
Which trip have I booked?
Who am I going to visit?
Where did we go on our honeymoon?
Which country did I like most?
Which countries have I been to?
What do I always pack?
What do I always carry with me?
What is in my bag?
What is in my pockets?
When is my wedding?
Which date did I get married on?
When did we meet?
When do I see the dentist?
Who is my eye doctor?
When is my operation?
What did the doctor tell me?
What are my blood results?
Which pill do I take for it?
When do I take my tablets?
What is my phobia?
What makes me nervous?
What gives me headaches?
What keeps me awake?
What helps me sleep?
What injury do I have?
Which knee hurts?
What am I intolerant to?
What is my glove size?
What size is my shirt?
How big are my feet?
What colour is my hair?
What is my tattoo of?
What is my home town?
In which town did I grow up?
Where did I spend my childhood?
Where did I go to school?
Where did I learn to swim?
What did my parents do?
What was my childhood nickname?
What was my first car?
What was my first pet?
When did I stop smoking?
How long have I not smoked?
When did I move?
Which city did I leave?
What is the name of my village?
What is my street like?
Which country is my passport from?
Which accent do I have?
What medal did I win?
What prize did I get?
What record do I hold?
What did I study abroad?
Where did I do my military service?
What am I known for?
What do people say about me?
What do I do differently from others?
What is my ritual?
What is my superstition?
What rule do we have at home?
What do I never do?
What do I always do first?
What can I do in my sleep?
What do I regret?
What did I forget?
What did I find?
What did I give away?
Who did I lend it to?
What did I borrow?
Whose is it?
What is my opinion about it?
Which season do I dislike?
What weather do I like?
Which colour can't I stand?
What did I name it?
What is its name?
What is his name?
What is her name?
What is it for?
What did I build?
What machine do I own?
Which tools do I own?
What is in my workshop?
Who fixes my computer?
Who is my accountant?
Who cuts my hair?
Who delivers my vegetables?
Which library do I use?
Where do I do my shopping?
Which market do I go to?
Where is my favourite bench?
Where do I go to think?
What café do I go to?
Which committee am I on?
Where do I volunteer?
What do I campaign for?
Who is coming on Saturday?
What are we celebrating?
Who is invited?
What gift should I buy?
What shall I remind myself of?
What should I not forget?
""".strip().splitlines()
)
