.PHONY: demo test check bench torture install

demo:    ; @tests/demo.sh
test:    ; @tests/scripts/test.sh
check:   ; @tests/scripts/check.sh
bench:   ; @tests/scripts/bench.sh
torture: ; @tests/scripts/torture.sh $(ARGS)
install: ; @tests/scripts/install.sh
