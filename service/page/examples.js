// The sets of texts that the page can open with. Every one was written for it.

const LONG_DAYS = 60;

const query = (lang, text) => ({ lang, text, role: "query", instruction: "" });
const passage = (lang, text) => ({ lang, text, role: "passage", instruction: "" });

/** By name, in the order of the menu: {title, texts, search, selected}. The first is what the page opens with. */
export const EXAMPLES = {
  topics: {
    title: "Three topics, twelve languages",
    search: "When does the train to the airport leave?",
    texts: [
      query("zh", "去机场的火车几点开？"),
      passage("de", "Der Zug zum Flughafen fährt jede halbe Stunde vom Hauptbahnhof ab."),
      passage("ar", "ينطلق القطار إلى المطار كل نصف ساعة من المحطة الرئيسية."),
      passage("th", "รถไฟไปสนามบินออกจากสถานีกลางทุกครึ่งชั่วโมง"),
      query("ja", "月は何日で地球を一周しますか？"),
      passage("fr", "La Lune tourne autour de la Terre en vingt-sept jours environ."),
      passage("sw", "Mwezi huizunguka Dunia kwa takriban siku ishirini na saba."),
      passage("ko", "달은 지구를 약 27일 만에 한 바퀴 돈다."),
      query("ru", "Сколько домов разрушило землетрясение?"),
      passage("hi", "भूकंप ने तट पर सैकड़ों घर नष्ट कर दिए।"),
      passage("pt", "O terremoto destruiu centenas de casas no litoral."),
      passage("bn", "ভূমিকম্পে উপকূলের শত শত বাড়ি ধ্বংস হয়েছে।"),
    ],
  },
  sentence: {
    title: "One sentence, fourteen languages",
    search: "What are the opening hours of the library?",
    texts: [
      query("en", "The library opens at nine in the morning and closes at eight in the evening."),
      query("zh", "图书馆早上九点开门，晚上八点关门。"),
      query("de", "Die Bibliothek öffnet um neun Uhr morgens und schließt um acht Uhr abends."),
      query("fr", "La bibliothèque ouvre à neuf heures du matin et ferme à huit heures du soir."),
      query("es", "La biblioteca abre a las nueve de la mañana y cierra a las ocho de la tarde."),
      query("ru", "Библиотека открывается в девять утра и закрывается в восемь вечера."),
      query("ar", "تفتح المكتبة في التاسعة صباحًا وتغلق في الثامنة مساءً."),
      query("he", "הספרייה נפתחת בתשע בבוקר ונסגרת בשמונה בערב."),
      query("hi", "पुस्तकालय सुबह नौ बजे खुलता है और शाम को आठ बजे बंद होता है।"),
      query("ja", "図書館は朝九時に開き、夜八時に閉まります。"),
      query("ko", "도서관은 아침 아홉 시에 열고 저녁 여덟 시에 닫습니다."),
      query("th", "ห้องสมุดเปิดเก้าโมงเช้าและปิดสองทุ่ม"),
      query("el", "Η βιβλιοθήκη ανοίγει στις εννέα το πρωί και κλείνει στις οκτώ το βράδυ."),
      query("sw", "Maktaba hufunguliwa saa tatu asubuhi na kufungwa saa mbili usiku."),
    ],
  },
  roles: {
    title: "The same texts as query and as passage",
    search: "Wo finde ich Hilfe bei Zahnschmerzen?",
    texts: [
      query("de", "Hilfe bei Zahnschmerzen am Wochenende"),
      passage("de", "Hilfe bei Zahnschmerzen am Wochenende"),
      query("tr", "hafta sonu açık eczane"),
      passage("tr", "hafta sonu açık eczane"),
      query("ja", "保育園の申し込み方法"),
      passage("ja", "保育園の申し込み方法"),
    ],
  },
  cut: {
    title: "A text over the limit",
    search: "How was the weather on the second day?",
    texts: [
      passage("en", logbook()),
      passage("es", "Segundo día: viento del norte, cielo despejado, ninguna vela a la vista."),
      passage("ru", "День второй: северный ветер, ясное небо, ни одного паруса."),
      query("zh", "第二天的天气怎么样？"),
    ],
  },
};

/** A keeper's log of many days: more tokens than any E5 reads. */
function logbook() {
  const winds = ["north", "north-east", "west", "south-west"];
  const skies = ["clear sky", "low clouds", "rain until noon", "fog at dawn"];
  const days = Array.from({ length: LONG_DAYS }, (_, day) => {
    const sails = day % 5 ? `${day % 5} sails in sight` : "no sail in sight";
    return `Day ${day + 1}: wind from the ${winds[day % 4]}, ${skies[(day * 3) % 4]}, ${sails}.`;
  });
  return `Log of the lighthouse keeper. ${days.join(" ")}`;
}
