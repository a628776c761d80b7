.PHONY: demo test check bench install

demo:    ; @tests/demo.sh
test:    ; @tests/scripts/test.sh
check:   ; @tests/scripts/check.sh
bench:   ; @tests/scripts/bench.sh
install: ; @tests/scripts/install.sh
