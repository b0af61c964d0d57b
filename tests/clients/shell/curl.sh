question='"How tall is the television tower?"'
passages='["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."]'

embed() {
  curl --silent --show-error --fail-with-body http://127.0.0.1:8080/embed -d "{\"inputs\": $1, \"input_type\": \"$2\"}"
}

question_vector=$(embed "$question" query)
passage_vectors=$(embed "$passages" passage)
