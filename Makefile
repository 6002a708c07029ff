# make           build the executables
# make demo      the main job on a scratch directory, command by command
# make check     every test; installs what it needs
# make bench     figures, as ratios against what one would use instead
# make install   DESTDIR= PREFIX=/usr/local; SMDIR=/opt/xensource/sm puts the drivers where xapi looks, and
#                PLUGINDIR=/etc/xapi.d/plugins the plug-in by which other hosts pause a disk
# make torture   the long siblings of the crash and fault tests
# make generated man pages and completions from the command-line definitions

PREFIX ?= /usr/local
DESTDIR ?=
# Where xapi looks for drivers. Empty: xapi is left alone.
SMDIR ?=
# Where xapi looks for host plug-ins. The one that is there is kept as tapdisk-pause.stock.
PLUGINDIR ?=

HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
# The same place whatever CARGO_TARGET_DIR says, because scripts look here.
export CARGO_TARGET_DIR := $(CURDIR)/target
BIN := $(CARGO_TARGET_DIR)/$(HOST)/release
export BIN

# The drivers are links to sm: one file on a small root disk, and xapi follows links.
DRIVERS = $(shell sed -n 's/.*executable: "\(.*\)",.*/\1/p' src/sr/*.rs)

.PHONY: all release demo check lint test compliance guests readme bench install uninstall torture generated deps deps-build clean

all: release

# Static: they run in a dom0 whose glibc is older than the one they were built with.
release: deps-build
	RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --bin sm --target $(HOST)
	for d in $(DRIVERS); do ln -sf sm $(BIN)/$$d || exit; done

demo: deps-build release
	tests/sh/demo.sh

check: deps lint release
	tests/check

lint:
	cargo fmt --check
	cargo clippy --all-targets --quiet -- -D warnings

bench: deps release
	benches/run

torture: deps release
	cargo test --release --test '*' -- --ignored

generated:
	UPDATE_GENERATED=1 cargo test --quiet --test generated

install: release
	install -d $(DESTDIR)$(PREFIX)/sbin $(DESTDIR)$(PREFIX)/share/man/man8 $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	install -m 755 $(BIN)/sm $(DESTDIR)$(PREFIX)/sbin/sm
	for d in $(DRIVERS); do ln -sf sm $(DESTDIR)$(PREFIX)/sbin/$$d || exit; done
	[ -z "$(SMDIR)" ] || install -d $(DESTDIR)$(SMDIR)
	[ -z "$(SMDIR)" ] || support/observer-entry $(DESTDIR)$(PREFIX)/sbin/sm
	[ -z "$(SMDIR)" ] || for d in $(DRIVERS); do ln -sf $(PREFIX)/sbin/sm $(DESTDIR)$(SMDIR)/$$d || exit; done
	[ -z "$(PLUGINDIR)" ] || install -d $(DESTDIR)$(PLUGINDIR)
	[ -z "$(PLUGINDIR)" ] || support/install-plugin $(DESTDIR)$(PLUGINDIR) $(PREFIX)/sbin/sm
	install -m 644 man/*.8 $(DESTDIR)$(PREFIX)/share/man/man8
	install -m 644 completions/sm.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/sm

# The drivers in SMDIR stay: what was there before them is for the administrator to put back (docs/xapi.md).
uninstall:
	rm -f $(DESTDIR)$(PREFIX)/sbin/sm $(addprefix $(DESTDIR)$(PREFIX)/sbin/,$(DRIVERS))
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/share/man/man8/,$(notdir $(wildcard man/*.8)))
	rm -f $(DESTDIR)$(PREFIX)/share/bash-completion/completions/sm

deps-build:
	@tests/deps build

deps:
	@tests/deps build check

clean:
	cargo clean
